// Matrix products as the SoC's matrix unit computes them, and operators built of them.
#include "opapi.h"

#include <cstring>

namespace opapi {
namespace {

// cubeMathType of the aclnn interface.
constexpr int8_t kKeepDtype = 0;
constexpr int8_t kDownPrecision = 1;
constexpr int8_t kFp16 = 2;
constexpr int8_t kHf32 = 3;

// HF32 keeps 11 of the 23 bits behind the point.
Tensor to_hf32(const Tensor& value) {
  Tensor rounded = value.contiguous().clone();
  auto* numbers = rounded.data_ptr<float>();
  for (int64_t at = 0; at < rounded.numel(); ++at) {
    uint32_t bits;
    std::memcpy(&bits, numbers + at, sizeof(bits));
    bits = (bits + (1U << 11)) & ~((1U << 12) - 1);
    std::memcpy(numbers + at, &bits, sizeof(bits));
  }
  return rounded;
}

// Whether the matrix unit multiplies float32, and HF32 with it.
bool has_float32() { return stub::limits().float32_products; }

}  // namespace

void check_product(const Tensor& value, int8_t cube_math) {
  const bool refused = value.scalar_type() == at::kFloat && (cube_math == kKeepDtype || cube_math == kHf32);
  TORCH_CHECK(!refused || has_float32(), "cubeMathType ", static_cast<int>(cube_math), " has no product of DT_FLOAT on ",
              aclrtGetSocName());
}

Tensor factor(const Tensor& value, int8_t cube_math) {
  if (value.scalar_type() != at::kFloat) return value;
  switch (cube_math) {
    case kDownPrecision: return has_float32() ? to_hf32(value) : value.to(at::kHalf).to(at::kFloat);
    case kFp16: return value.to(at::kHalf).to(at::kFloat);
    case kHf32: return to_hf32(value);
    default: return value;
  }
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& hidden,
                 const std::string& layout, int64_t sparse_mode, double scale, double keep) {
  TORCH_CHECK(layout == "BNSD" && sparse_mode == 0 && keep == 1.0, "layout ", layout, ", sparse mode ", sparse_mode,
              ", keep probability ", keep, " are not emulated");
  const auto seen = hidden ? std::optional<Tensor>(hidden->logical_not()) : std::nullopt;
  return at::scaled_dot_product_attention(q, k, v, seen, 0.0, false, scale);
}

}  // namespace opapi
