// Device memory: host memory from a caching allocator, filled with NaN whenever it is handed out.
#pragma once
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>

#include <cstdint>

namespace npu_simulator {

// All bits set is NaN in float32, float16 and bfloat16, and -1 in the integers.
inline constexpr int kPoison = 0xFF;

struct MemoryStatistics {
  int64_t allocated = 0;
  int64_t reserved = 0;
  int64_t peak_allocated = 0;
  int64_t peak_reserved = 0;
  int64_t allocations = 0;
};

// Allocates on the current device.
c10::Allocator* device_allocator();

MemoryStatistics memory_statistics(c10::DeviceIndex device);
void reset_peaks(c10::DeviceIndex device);

// Gives free blocks back.
void empty_cache();

}  // namespace npu_simulator
