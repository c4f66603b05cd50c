// Device memory is host memory: the CPU's kernels work on it through tensors that share it.
#pragma once
#include <ATen/core/Tensor.h>

namespace npu_simulator {

// A CPU tensor over the memory of `tensor`, which must outlive it; `tensor` itself where it is on the CPU.
at::Tensor on_host(const at::Tensor& tensor);

// A new tensor on the device with the shape, the strides where they are dense, and the content of `host`. The content
// is left out where the device has failed.
at::Tensor on_device(const at::Tensor& host, c10::DeviceIndex device);

// "Float[1, 80, 600]"
std::string described(const at::Tensor& tensor);

}  // namespace npu_simulator
