// Options: kept and given back, and logged, so that a test sees what torch_npu was made to set.
#include "stub.h"

#include <algorithm>
#include <map>
#include <mutex>

namespace {

std::mutex lock;
std::map<aclCompileOpt, std::string> compile_options;
std::map<aclSysParamOpt, int64_t> system_options;

std::string name_of(aclCompileOpt option) {
  switch (option) {
    case ACL_PRECISION_MODE: return "ACL_PRECISION_MODE";
    case ACL_OP_JIT_COMPILE: return "ACL_OP_JIT_COMPILE";
    case ACL_ALLOW_HF32: return "ACL_ALLOW_HF32";
    case ACL_OP_DETERMINISTIC: return "ACL_OP_DETERMINISTIC";
    default: return std::to_string(option);
  }
}

}  // namespace

extern "C" {

aclError aclSetCompileopt(aclCompileOpt option, const char* value) {
  stub::log("option " + name_of(option) + " " + value);
  std::lock_guard<std::mutex> guard(lock);
  compile_options[option] = value;
  return ACL_SUCCESS;
}

size_t aclGetCompileoptSize(aclCompileOpt option) {
  std::lock_guard<std::mutex> guard(lock);
  return compile_options[option].size() + 1;
}

aclError aclGetCompileopt(aclCompileOpt option, char* value, size_t length) {
  std::lock_guard<std::mutex> guard(lock);
  const auto& text = compile_options[option];
  if (length < text.size() + 1) return stub::fail(ACL_ERROR_INVALID_PARAM, "too short for a compile option");
  value[text.copy(value, text.size())] = '\0';
  return ACL_SUCCESS;
}

aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  stub::log("system option " + std::to_string(option) + " " + std::to_string(value));
  std::lock_guard<std::mutex> guard(lock);
  system_options[option] = value;
  return ACL_SUCCESS;
}

aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t* value) {
  std::lock_guard<std::mutex> guard(lock);
  *value = system_options[option];
  return ACL_SUCCESS;
}

aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) { return aclrtSetSysParamOpt(option, value); }
aclError aclrtCtxGetSysParamOpt(aclSysParamOpt option, int64_t* value) { return aclrtGetSysParamOpt(option, value); }

}  // extern "C"
