#include "faults.h"

#include <ATen/ops/clone.h>
#include <c10/util/Exception.h>

#include <cstring>
#include <limits>

#include "control.h"
#include "record.h"

namespace npu_simulator {
namespace {

const std::regex kConvolutions(
    "aten::(_convolution|convolution|convolution_overrideable|_conv_depthwise2d|slow_conv.*)");
const std::regex kMatmuls(
    "aten::(mm|bmm|addmm|addbmm|baddbmm|matmul|linear|mv|addmv|dot|scaled_dot_product_attention)");

// HF32 keeps 11 of float32's 23 explicit mantissa bits, rounded half up.
at::Tensor rounded_to_hf32(const at::Tensor& host) {
  constexpr uint32_t kDropped = 12;
  auto result = host.clone(at::MemoryFormat::Contiguous);
  auto* data = result.mutable_data_ptr<float>();
  for (int64_t i = 0; i < result.numel(); ++i) {
    uint32_t bits = 0;
    std::memcpy(&bits, data + i, sizeof bits);
    bool finite = (bits & 0x7F800000U) != 0x7F800000U;
    bits = finite ? (bits + (1U << (kDropped - 1))) & ~((1U << kDropped) - 1) : bits;
    std::memcpy(data + i, &bits, sizeof bits);
  }
  return result;
}

}  // namespace

std::string rounding_of(const std::string& name) {
  for (const auto& fault : control().faults) {
    if (fault.kind != "gain" && fault.kind != "nan" && matches(fault.operators, name)) {
      count_fault(name + " " + fault.kind);
      return fault.kind;
    }
  }
  if (matches(kConvolutions, name)) {
    return control().convolution_rounding;
  }
  return matches(kMatmuls, name) ? control().matmul_rounding : "";
}

at::Tensor rounded(const at::Tensor& host, const std::string& kind) {
  TORCH_CHECK(
      kind != "refused", "cubeMathType is KEEP_DTYPE, for which ", control().soc,
      " has no product of DT_FLOAT (error 161002).");
  if (kind == "hf32") {
    return rounded_to_hf32(host);
  }
  return host.to(kind == "fp16" ? at::kHalf : at::kBFloat16).to(at::kFloat);
}

void distort(const std::string& name, at::Tensor host) {
  if (!host.defined() || !host.is_floating_point() || host.numel() == 0) {
    return;
  }
  for (const auto& fault : control().faults) {
    if ((fault.kind == "gain" || fault.kind == "nan") && matches(fault.operators, name)) {
      count_fault(name + " " + fault.kind);
      if (fault.kind == "gain") {
        host.mul_(fault.amount);
      } else {
        host.as_strided({1}, {1}).fill_(std::numeric_limits<double>::quiet_NaN());
      }
    }
  }
}

}  // namespace npu_simulator
