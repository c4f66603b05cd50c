// The device type "npu" as torch sees it: current device, streams, random numbers.
#pragma once
#include <c10/core/Device.h>

namespace npu_simulator {

inline constexpr c10::DeviceType kNpu = c10::DeviceType::PrivateUse1;

c10::DeviceIndex current_device();
void set_device(c10::DeviceIndex device);

// Registers guard, hooks and allocator. The backend must have been renamed to "npu" before.
void register_device();

}  // namespace npu_simulator
