// What the generated operators are made of. CANN's handles hold ATen tensors that view device memory.
#pragma once

#include <ATen/ATen.h>

#include "stub.h"

struct aclTensor {
  at::Tensor value;
  bool on_device;
};
struct aclScalar {
  at::Scalar value;
};
struct aclIntArray {
  std::vector<int64_t> value;
};
struct aclFloatArray {
  std::vector<double> value;
};
struct aclBoolArray {
  std::vector<bool> value;
};
struct aclTensorList {
  std::vector<const aclTensor*> value;
};
struct aclScalarList {
  std::vector<at::Scalar> value;
};
struct aclOpExecutor {
  std::string name;
  std::function<void()> work;
};

namespace opapi {

using at::Scalar;
using at::Tensor;
using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;
using Work = std::function<void()>;

// Plan now, on the thread that gives the operator: arguments that are wrong are its caller's error.
int plan(const char* name, uint64_t* workspace, aclOpExecutor** executor, const std::function<Work()>& bind);
int launch(aclOpExecutor* executor, aclrtStream stream);

// Arguments, by the kinds of the operators' table.
Tensor tensor(const aclTensor* given);
std::optional<Tensor> optional_tensor(const aclTensor* given);
Tensors tensors(const aclTensorList* given);
Scalar scalar(const aclScalar* given);
std::optional<Scalar> optional_scalar(const aclScalar* given);
Ints ints(const aclIntArray* given);
at::ScalarType dtype_of(int acl_dtype);

// Writes a result, which must have the shape that torch_npu foresaw.
void write(const std::optional<Tensor>& out, const Tensor& result);

// Writes an operator's results to its first outputs; the others stay as they are.
template <class... Outs>
void write_results(const Tensor& result, const std::optional<Tensor>& out, const Outs&...) {
  write(out, result);
}

template <class... Results, class... Outs>
void write_results(const std::tuple<Results...>& results, const Outs&... outs) {
  const std::tuple<const Outs&...> places(outs...);
  [&]<size_t... At>(std::index_sequence<At...>) {
    (write(std::get<At>(places), std::get<At>(results)), ...);
  }(std::index_sequence_for<Results...>());
}

// Refuses a factor of a product that the SoC does not compute under this cubeMathType: aclnnMm, aclnnMatmul,
// aclnnBatchMatMul, aclnnAddmm and aclnnConvolution check it before they plan (CheckSocSupportDtype and its like in
// CANN's ops-nn, matmul/ and conv/).
void check_product(const Tensor& value, int8_t cube_math);

// A factor as the matrix unit reads it: fp32 is rounded to HF32 or fp16 where `cube_math` or the SoC's default says so.
Tensor factor(const Tensor& value, int8_t cube_math);

// An operator of more than one expression.
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& hidden,
                 const std::string& layout, int64_t sparse_mode, double scale, double keep);

}  // namespace opapi
