// Devices, contexts, versions, the SoC.
#include "stub.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace {

thread_local int32_t current = -1;
int context;

std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

int32_t devices() { return std::stoi(setting("CANN_STUB_DEVICES", "2")); }

// torch_npu chooses its path by the versions of CANN and RUNTIME, which must parse. The others tell what this is.
std::string version_of(aclCANNPackageName package) {
  const bool chosen_by = package == ACL_PKG_NAME_CANN || package == ACL_PKG_NAME_RUNTIME;
  const auto version = setting("CANN_STUB_CANN", CANN_STUB_VERSION);
  return chosen_by ? version : version + "-simulated";
}

constexpr stub::Limits kLimits[] = {
#include "limits.inc"
};

}  // namespace

const stub::Limits& stub::limits() {
  const std::string soc = aclrtGetSocName();
  for (const auto& row : kLimits) {
    if (soc.rfind(std::string("Ascend") + row.family, 0) == 0) return row;
  }
  throw std::runtime_error(soc + " is not in tests/ascend_limits.json");
}

int stub::cann_major() { return std::stoi(setting("CANN_STUB_CANN", CANN_STUB_VERSION)); }

extern "C" {

aclError aclInit(const char*) { return ACL_SUCCESS; }
aclError aclFinalize() { return ACL_SUCCESS; }

aclError aclsysGetCANNVersion(aclCANNPackageName package, aclCANNPackageVersion* version) {
  std::memset(version, 0, sizeof(*version));
  version_of(package).copy(version->version, ACL_PKG_VERSION_MAX_SIZE - 1);
  return ACL_SUCCESS;
}

aclError aclsysGetVersionStr(char*, char* version) {
  std::strcpy(version, CANN_STUB_VERSION);
  return ACL_SUCCESS;
}

const char* aclrtGetSocName() {
  static const std::string soc = setting("CANN_STUB_SOC", "Ascend910B4");
  return soc.c_str();
}

aclError aclrtGetDeviceCount(uint32_t* count) {
  *count = static_cast<uint32_t>(devices());
  return ACL_SUCCESS;
}

aclError aclrtSetDevice(int32_t device) {
  if (device < 0 || device >= devices()) {
    return stub::fail(ACL_ERROR_RT_INVALID_DEVICEID, "there is no device " + std::to_string(device));
  }
  current = device;
  return ACL_SUCCESS;
}

aclError aclrtGetDevice(int32_t* device) {
  if (current < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  *device = current;
  return ACL_SUCCESS;
}

aclError aclrtResetDevice(int32_t) { return ACL_SUCCESS; }

aclError aclrtGetCurrentContext(aclrtContext* found) {
  if (current < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  *found = &context;
  return ACL_SUCCESS;
}

aclError aclrtSetCurrentContext(aclrtContext) {
  if (current < 0) current = 0;
  return ACL_SUCCESS;
}

aclError aclrtGetPrimaryCtxState(int32_t, uint32_t*, int32_t* active) {
  *active = 1;
  return ACL_SUCCESS;
}

// One of each: no figure here is a chip's.
aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo, int64_t* value) {
  *value = 1;
  return ACL_SUCCESS;
}

aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode) { return ACL_SUCCESS; }
aclError aclrtSetOpWaitTimeout(uint32_t) { return ACL_SUCCESS; }
aclError aclrtSetOpExecuteTimeOut(uint32_t) { return ACL_SUCCESS; }

aclError aclrtSetOpExecuteTimeOutV2(uint64_t timeout, uint64_t* actual) {
  *actual = timeout;
  return ACL_SUCCESS;
}

}  // extern "C"
