// What a test asks of the device: its kind and number, and what is to go wrong. Set before the first tensor.
#pragma once
#include <cstdint>
#include <optional>
#include <regex>
#include <string>
#include <vector>

namespace npu_simulator {

// A numeric fault: "fp16", "bf16" and "hf32" round float32 inputs, "gain" multiplies the outputs by `amount`,
// "nan" puts a NaN into each output's first element.
struct Fault {
  std::regex operators;
  std::string kind;
  double amount;
};

// The `call`-th operator that matches fails on the device; the host hears of it at the next synchronization, or when
// `after` more operators have been queued.
struct AsynchronousError {
  std::regex operators;
  int64_t call;
  std::optional<int64_t> after;
};

struct Control {
  std::string soc = "Ascend910B4";
  int device_count = 1;
  size_t memory_bytes = size_t{32} << 30;
  bool forbid_fallback = false;
  // What the SoC has, by tests/ascend_limits.json.
  bool bfloat16 = true;
  bool attention = true;
  std::vector<std::regex> denied;
  std::vector<std::regex> without_kernel;
  std::vector<Fault> faults;
  std::optional<AsynchronousError> asynchronous_error;
  // What the SoC does to float32 by itself, under the flags in force: "" (nothing), "hf32", "fp16" or "refused".
  std::string convolution_rounding;
  std::string matmul_rounding;
};

Control& control();

inline bool matches(const std::regex& pattern, const std::string& name) {
  return std::regex_match(name, pattern) || std::regex_match(name.substr(0, name.find('.')), pattern);
}

}  // namespace npu_simulator
