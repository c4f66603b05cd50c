// Errors, the log, and CANN's own log, which is not kept.
#include "stub.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <mutex>

namespace stub {
namespace {

thread_local std::string recent;
std::mutex lock;

}  // namespace

aclError fail(aclError code, const std::string& message) {
  recent += "stub CANN: " + message + "\n";
  log("error " + std::to_string(code) + " " + message);
  return code;
}

aclError not_emulated(const std::string& function) {
  return fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, function + " is not emulated");
}

void log(const std::string& line) {
  static const char* path = std::getenv("CANN_STUB_LOG");
  if (path == nullptr) return;
  std::lock_guard<std::mutex> guard(lock);
  std::ofstream(path, std::ios::app) << getpid() << " " << line << "\n";
}

}  // namespace stub

extern "C" const char* aclGetRecentErrMsg() {
  static thread_local std::string told;
  told.swap(stub::recent);
  stub::recent.clear();
  return told.c_str();
}

extern "C" void aclAppLog(aclLogLevel, const char*, const char*, uint32_t, const char*, ...) {}
