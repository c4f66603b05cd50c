#include "memory.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "control.h"
#include "device.h"
#include "queue.h"

namespace npu_simulator {
namespace {

constexpr size_t kAlignment = 512;

struct Block {
  size_t bytes;
  c10::DeviceIndex device;
};

std::mutex mutex;
std::unordered_map<void*, Block> blocks;
std::map<std::pair<c10::DeviceIndex, size_t>, std::vector<void*>> free_blocks;
std::map<c10::DeviceIndex, MemoryStatistics> statistics;

void drop_free_blocks() {
  for (auto& [key, pointers] : free_blocks) {
    for (void* pointer : pointers) {
      blocks.erase(pointer);
      std::free(pointer);
    }
    statistics[key.first].reserved -= static_cast<int64_t>(key.second * pointers.size());
  }
  free_blocks.clear();
}

void* new_block(c10::DeviceIndex device, size_t bytes) {
  auto& stats = statistics[device];
  if (static_cast<size_t>(stats.reserved) + bytes > control().memory_bytes) {
    drop_free_blocks();
  }
  void* pointer = nullptr;
  bool fits = static_cast<size_t>(stats.reserved) + bytes <= control().memory_bytes;
  TORCH_CHECK_WITH(
      OutOfMemoryError, fits && posix_memalign(&pointer, kAlignment, bytes) == 0,
      "NPU out of memory. Tried to allocate ", bytes, " bytes on npu:", static_cast<int>(device), " (",
      control().memory_bytes, " total capacity; ", stats.allocated, " already allocated)");
  stats.reserved += static_cast<int64_t>(bytes);
  stats.peak_reserved = std::max(stats.peak_reserved, stats.reserved);
  blocks[pointer] = {bytes, device};
  return pointer;
}

void release(void* pointer) {
  std::lock_guard<std::mutex> lock(mutex);
  auto& block = blocks.at(pointer);
  statistics[block.device].allocated -= static_cast<int64_t>(block.bytes);
  free_blocks[{block.device, block.bytes}].push_back(pointer);
}

void release_nothing(void*) {}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    auto device = current_device();
    c10::Device place(kNpu, device);
    if (n == 0) {
      return {nullptr, nullptr, &release_nothing, place};
    }
    size_t bytes = (n + kAlignment - 1) / kAlignment * kAlignment;
    std::lock_guard<std::mutex> lock(mutex);
    auto& pool = free_blocks[{device, bytes}];
    void* pointer = nullptr;
    if (pool.empty()) {
      pointer = new_block(device, bytes);
    } else {
      pointer = pool.back();
      pool.pop_back();
    }
    // A failed queue writes no more: what an earlier owner left stays, and may look like a result.
    if (!has_failed(device)) {
      std::memset(pointer, kPoison, bytes);
    }
    auto& stats = statistics[device];
    stats.allocated += static_cast<int64_t>(bytes);
    stats.peak_allocated = std::max(stats.peak_allocated, stats.allocated);
    stats.allocations++;
    return {pointer, pointer, &release, place};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* target, const void* source, size_t n) const override { std::memcpy(target, source, n); }
};

}  // namespace

c10::Allocator* device_allocator() {
  static DeviceAllocator allocator;
  return &allocator;
}

MemoryStatistics memory_statistics(c10::DeviceIndex device) {
  std::lock_guard<std::mutex> lock(mutex);
  return statistics[device];
}

void reset_peaks(c10::DeviceIndex device) {
  std::lock_guard<std::mutex> lock(mutex);
  auto& stats = statistics[device];
  stats.peak_allocated = stats.allocated;
  stats.peak_reserved = stats.reserved;
}

void empty_cache() {
  std::lock_guard<std::mutex> lock(mutex);
  drop_free_blocks();
}

}  // namespace npu_simulator
