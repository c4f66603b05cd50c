// CANN's handles, and what an operator's arguments become.
#include "opapi.h"

namespace opapi {

at::ScalarType dtype_of(int acl_dtype) {
  switch (acl_dtype) {
    case ACL_FLOAT: return at::kFloat;
    case ACL_FLOAT16: return at::kHalf;
    case ACL_BF16: return at::kBFloat16;
    case ACL_DOUBLE: return at::kDouble;
    case ACL_INT8: return at::kChar;
    case ACL_UINT8: return at::kByte;
    case ACL_INT16: return at::kShort;
    case ACL_INT32: return at::kInt;
    case ACL_INT64: return at::kLong;
    case ACL_BOOL: return at::kBool;
    case ACL_COMPLEX64: return at::kComplexFloat;
    default: TORCH_CHECK(false, "data type ", acl_dtype, " is not emulated");
  }
}

Tensor tensor(const aclTensor* given) {
  TORCH_CHECK(given != nullptr, "a tensor is missing");
  TORCH_CHECK(given->on_device, "a tensor of shape ", given->value.sizes(), " is not in device memory");
  TORCH_CHECK(given->value.scalar_type() != at::kBFloat16 || stub::limits().bfloat16, "DT_BFLOAT16 is not supported on ",
              aclrtGetSocName());
  return given->value;
}

std::optional<Tensor> optional_tensor(const aclTensor* given) {
  return given == nullptr ? std::nullopt : std::optional<Tensor>(tensor(given));
}

Tensors tensors(const aclTensorList* given) {
  Tensors found;
  if (given == nullptr) return found;
  for (const auto* one : given->value) found.push_back(one == nullptr ? Tensor() : tensor(one));
  return found;
}

Scalar scalar(const aclScalar* given) {
  TORCH_CHECK(given != nullptr, "a scalar is missing");
  return given->value;
}

std::optional<Scalar> optional_scalar(const aclScalar* given) {
  return given == nullptr ? std::nullopt : std::optional<Scalar>(given->value);
}

Ints ints(const aclIntArray* given) { return given == nullptr ? Ints{} : given->value; }

namespace {

// ATen's errors come with a backtrace, which is this library's.
std::string reason(const std::exception& error) {
  const auto* known = dynamic_cast<const c10::Error*>(&error);
  return known == nullptr ? error.what() : known->what_without_backtrace();
}

}  // namespace

int plan(const char* name, uint64_t* workspace, aclOpExecutor** executor, const std::function<Work()>& bind) {
  constexpr int kInvalidArgument = 161002;
  *workspace = 0;
  if (std::string(stub::limits().missing).find(std::string(" ") + name + " ") != std::string::npos) {
    return stub::fail(kInvalidArgument, std::string(name) + " is not supported on " + aclrtGetSocName());
  }
  try {
    *executor = new aclOpExecutor{name, bind()};
    return 0;
  } catch (const std::exception& error) {
    return stub::fail(kInvalidArgument, std::string(name) + ": " + reason(error));
  }
}

int launch(aclOpExecutor* executor, aclrtStream stream) {
  static const char* failing = std::getenv("CANN_STUB_FAIL");
  const std::string name = executor->name;
  stub::log("launch " + name);
  const int code = stub::submit(stream, name, [name, work = std::move(executor->work)] {
    at::InferenceMode inference;
    try {
      TORCH_CHECK(failing == nullptr || name != failing, "fails as CANN_STUB_FAIL says");
      work();
    } catch (const c10::Error& error) {
      throw std::runtime_error(reason(error));
    }
  });
  delete executor;
  return code;
}

void write(const std::optional<Tensor>& out, const Tensor& result) {
  if (!out) return;
  TORCH_CHECK(out->sizes() == result.sizes(), "expected an output of shape ", result.sizes(), ", found ", out->sizes());
  out->copy_(result);
}

}  // namespace opapi

extern "C" {

aclTensor* aclCreateTensor(const int64_t* sizes, uint64_t dimensions, aclDataType type, const int64_t* strides,
                           int64_t offset, aclFormat, const int64_t*, uint64_t, void* data) {
  const auto dtype = opapi::dtype_of(type);
  const at::IntArrayRef shape(sizes, dimensions), steps(strides, dimensions);
  const auto bytes = at::detail::computeStorageNbytes(shape, steps, c10::elementSize(dtype));
  auto* first = static_cast<char*>(data) + offset * static_cast<int64_t>(c10::elementSize(dtype));
  return new aclTensor{at::from_blob(first, shape, steps, at::TensorOptions(dtype)),
                       bytes == 0 || stub::on_device(first, bytes)};
}

aclScalar* aclCreateScalar(void* value, aclDataType type) {
  const auto dtype = opapi::dtype_of(type);
  return new aclScalar{at::from_blob(value, {}, at::TensorOptions(dtype)).item()};
}

aclIntArray* aclCreateIntArray(const int64_t* value, uint64_t size) { return new aclIntArray{{value, value + size}}; }
aclFloatArray* aclCreateFloatArray(const float* value, uint64_t size) {
  return new aclFloatArray{{value, value + size}};
}
aclBoolArray* aclCreateBoolArray(const bool* value, uint64_t size) { return new aclBoolArray{{value, value + size}}; }
aclTensorList* aclCreateTensorList(const aclTensor* const* value, uint64_t size) {
  return new aclTensorList{{value, value + size}};
}
aclScalarList* aclCreateScalarList(const aclScalar* const* value, uint64_t size) {
  auto* list = new aclScalarList;
  for (uint64_t at = 0; at < size; ++at) list->value.push_back(value[at]->value);
  return list;
}

int aclGetViewShape(const aclTensor* tensor, int64_t** sizes, uint64_t* dimensions) {
  *dimensions = static_cast<uint64_t>(tensor->value.dim());
  *sizes = new int64_t[*dimensions];
  std::copy(tensor->value.sizes().begin(), tensor->value.sizes().end(), *sizes);
  return 0;
}

int aclDestroyTensor(const aclTensor* given) { return delete given, 0; }
int aclDestroyScalar(const aclScalar* given) { return delete given, 0; }
int aclDestroyIntArray(const aclIntArray* given) { return delete given, 0; }
int aclDestroyFloatArray(const aclFloatArray* given) { return delete given, 0; }
int aclDestroyBoolArray(const aclBoolArray* given) { return delete given, 0; }
int aclDestroyScalarList(const aclScalarList* given) { return delete given, 0; }
int aclDestroyTensorList(const aclTensorList* given) {
  for (const auto* one : given->value) delete one;
  return delete given, 0;
}

}  // extern "C"
