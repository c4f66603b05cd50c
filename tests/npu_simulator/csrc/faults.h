// Numeric faults: those that a test asks for, and what the SoC does to float32 under its default flags.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace npu_simulator {

// How the float32 inputs of an operator are rounded ("fp16", "bf16", "hf32"; "" not at all).
std::string rounding_of(const std::string& name);

// `host` rounded to a narrower format and back; an error where the SoC has no product of float32 ("refused").
at::Tensor rounded(const at::Tensor& host, const std::string& kind);

// Applies the faults "gain" and "nan" of the operator to an output.
void distort(const std::string& name, at::Tensor host);

}  // namespace npu_simulator
