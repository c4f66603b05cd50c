// Device memory is host memory that the stub keeps a list of. Fresh memory is all NaN.
#include "stub.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

constexpr size_t kTotal = size_t{8} << 30;
constexpr int kFresh = 0xFF;

std::mutex lock;
std::map<const char*, size_t> blocks;
size_t held = 0;

aclError allocate(void** address, size_t bytes) {
  std::lock_guard<std::mutex> guard(lock);
  if (bytes > kTotal - held || posix_memalign(address, 512, bytes + 32) != 0) {
    return stub::fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "out of memory at " + std::to_string(bytes) + " bytes");
  }
  std::memset(*address, kFresh, bytes);
  blocks[static_cast<char*>(*address)] = bytes;
  held += bytes;
  return ACL_SUCCESS;
}

// Returns what is wrong with the sides of a copy, nothing where both lie where `kind` says.
std::string misplaced(const void* to, const void* from, size_t bytes, aclrtMemcpyKind kind) {
  const bool to_device = kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  const bool from_device = kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  if (kind == ACL_MEMCPY_DEFAULT || bytes == 0) return "";
  if (stub::on_device(to, bytes) != to_device) return "copy to the wrong side";
  if (stub::on_device(from, bytes) != from_device) return "copy from the wrong side";
  return "";
}

std::string name_of(aclrtMemcpyKind kind, size_t bytes) {
  static const char* const names[] = {"H2H", "H2D", "D2H", "D2D", "default"};
  return std::string("copy ") + (kind <= ACL_MEMCPY_DEFAULT ? names[kind] : "other") + " " + std::to_string(bytes);
}

}  // namespace

bool stub::on_device(const void* address, size_t bytes) {
  std::lock_guard<std::mutex> guard(lock);
  const char* first = static_cast<const char*>(address);
  auto next = blocks.upper_bound(first);
  if (next == blocks.begin()) return false;
  auto block = std::prev(next);
  return first + bytes <= block->first + block->second;
}

extern "C" {

aclError aclrtMalloc(void** address, size_t bytes, aclrtMemMallocPolicy) { return allocate(address, bytes); }
aclError aclrtMallocAlign32(void** address, size_t bytes, aclrtMemMallocPolicy) { return allocate(address, bytes); }

aclError aclrtFree(void* address) {
  std::lock_guard<std::mutex> guard(lock);
  auto block = blocks.find(static_cast<char*>(address));
  if (block == blocks.end()) return stub::fail(ACL_ERROR_RT_PARAM_INVALID, "free of no device memory");
  held -= block->second;
  blocks.erase(block);
  std::free(address);
  return ACL_SUCCESS;
}

aclError aclrtMallocHost(void** address, size_t bytes) {
  return posix_memalign(address, 64, bytes) == 0 ? ACL_SUCCESS : ACL_ERROR_RT_MEMORY_ALLOCATION;
}

aclError aclrtFreeHost(void* address) {
  std::free(address);
  return ACL_SUCCESS;
}

aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  std::lock_guard<std::mutex> guard(lock);
  *free = kTotal - held;
  *total = kTotal;
  return ACL_SUCCESS;
}

aclError aclrtMemcpy(void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind kind) {
  stub::log(name_of(kind, bytes));
  if (const auto wrong = misplaced(to, from, bytes, kind); !wrong.empty()) {
    return stub::fail(ACL_ERROR_RT_PARAM_INVALID, wrong);
  }
  stub::run("copy", [=] { std::memcpy(to, from, bytes); });
  return stub::synchronize();
}

aclError aclrtMemcpyAsync(void* to, size_t, const void* from, size_t bytes, aclrtMemcpyKind kind, aclrtStream stream) {
  stub::log(name_of(kind, bytes));
  if (const auto wrong = misplaced(to, from, bytes, kind); !wrong.empty()) {
    return stub::fail(ACL_ERROR_RT_PARAM_INVALID, wrong);
  }
  return stub::submit(stream, "copy", [=] { std::memcpy(to, from, bytes); });
}

aclError aclrtMemset(void* address, size_t, int32_t value, size_t bytes) {
  std::memset(address, value, bytes);
  return ACL_SUCCESS;
}

aclError aclrtMemsetAsync(void* address, size_t, int32_t value, size_t bytes, aclrtStream stream) {
  return stub::submit(stream, "memset", [=] { std::memset(address, value, bytes); });
}

}  // extern "C"
