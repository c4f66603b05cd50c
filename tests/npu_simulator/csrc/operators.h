// Operators that have a kernel on the device; all others are computed by the CPU with a warning, or fail.
#pragma once
#include <string>
#include <vector>

namespace npu_simulator {

// Gives the named operators ("aten::add.Tensor") a kernel; views are left to torch, which makes them from as_strided.
void register_operators(const std::vector<std::string>& names);

}  // namespace npu_simulator
