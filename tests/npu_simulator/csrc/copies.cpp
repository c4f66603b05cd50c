// Memory, views and copies: what torch wants every backend to bring along.
#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <sstream>

#include "device.h"
#include "graph.h"
#include "host.h"
#include "memory.h"
#include "queue.h"
#include "record.h"

namespace npu_simulator {

at::Tensor on_host(const at::Tensor& tensor) {
  if (tensor.is_cpu()) {
    return tensor;
  }
  static char nothing[64];
  void* data = tensor.numel() == 0 ? nothing : tensor.mutable_data_ptr();
  return at::from_blob(data, tensor.sizes(), tensor.strides(), at::TensorOptions().dtype(tensor.scalar_type()));
}

std::string described(const at::Tensor& tensor) {
  if (!tensor.defined()) {
    return "-";
  }
  std::ostringstream text;
  text << c10::toString(tensor.scalar_type()) << tensor.sizes();
  return text.str();
}

namespace {

using c10::SymInt;
using c10::SymIntArrayRef;
using Dtype = std::optional<at::ScalarType>;
using Where = std::optional<at::Device>;
constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

at::Tensor empty(
    SymIntArrayRef size, Dtype dtype, std::optional<at::Layout>, Where device, std::optional<bool>,
    std::optional<at::MemoryFormat> format) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(size), device_allocator(), kKeys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    SymIntArrayRef size, SymIntArrayRef stride, Dtype dtype, std::optional<at::Layout>, Where device,
    std::optional<bool>) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), device_allocator(), kKeys,
      c10::dtype_or_default(dtype));
}

// `from` or `to` or both are on a device. A copy between host and device waits for the queue; there is no pinned memory
// that would let one be queued.
at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  if (from.is_cpu() || to.is_cpu()) {
    const char* direction = from.is_cpu() ? "host_to_device" : "device_to_host";
    synchronize((from.is_cpu() ? to : from).get_device(), direction);
    count_copy(direction, described(from), static_cast<int64_t>(from.nbytes()));
    if (to.is_cpu() || !has_failed(to.get_device())) {
      on_host(to).copy_(on_host(from));
    }
    return to;
  }
  auto work = [from, to] {
    enqueue(to.get_device(), "aten::copy_");
    count_copy("device_to_device", described(from), static_cast<int64_t>(from.nbytes()));
    if (!has_failed(to.get_device())) {
      on_host(to).copy_(on_host(from));
    }
  };
  if (auto* graph = capturing_graph()) {
    graph->will_be_restored(to);
    graph->add(work);
  }
  work();
  return to;
}

const at::Tensor& resize(const at::Tensor& self, SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  auto* tensor = self.unsafeGetTensorImpl();
  auto count = static_cast<size_t>(c10::multiply_integers(sizes));
  size_t bytes = (count + static_cast<size_t>(tensor->storage_offset())) * self.dtype().itemsize();
  auto* storage = self.storage().unsafeGetStorageImpl();
  if (bytes > storage->nbytes()) {
    c10::DeviceGuard guard(self.device());
    auto larger = device_allocator()->allocate(bytes);
    if (storage->nbytes() > 0) {
      std::memcpy(larger.get(), storage->data(), storage->nbytes());
    }
    storage->set_data_ptr_noswap(std::move(larger));
    storage->set_nbytes(bytes);
  }
  tensor->set_sizes_contiguous(sizes);
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (from.sizes() != to.sizes()) {
    to.resize_(from.sizes());
  }
  return copy_from(from, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  synchronize(self.get_device(), "item");
  count_copy("device_to_host", described(self), static_cast<int64_t>(self.nbytes()));
  return at::_local_scalar_dense(on_host(self));
}

at::Tensor view(const at::Tensor& self, SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

at::Tensor as_strided(
    const at::Tensor& self, SymIntArrayRef size, SymIntArrayRef stride, std::optional<SymInt> offset) {
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
      offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt);
}

at::Tensor reshape_alias(const at::Tensor& self, SymIntArrayRef size, SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

at::Tensor& set_storage(
    at::Tensor& self, at::Storage source, SymInt offset, SymIntArrayRef size, SymIntArrayRef stride) {
  return at::native::set_storage_cpu_(
      self, std::move(source), offset.expect_int(), C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

}  // namespace

at::Tensor on_device(const at::Tensor& host, c10::DeviceIndex index) {
  c10::DeviceGuard guard(c10::Device(kNpu, index));
  auto result = host.is_non_overlapping_and_dense()
      ? at::Tensor(at::detail::empty_strided_generic(
            host.sizes(), host.strides(), device_allocator(), kKeys, host.scalar_type()))
      : at::Tensor(at::detail::empty_generic(
            host.sizes(), device_allocator(), kKeys, host.scalar_type(), std::nullopt));
  if (!has_failed(index)) {
    on_host(result).copy_(host);
  }
  return result;
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar_dense);
  m.impl("view", &view);
  m.impl("as_strided", &as_strided);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
}

}  // namespace npu_simulator
