#include "device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "control.h"
#include "graph.h"
#include "memory.h"
#include "queue.h"

namespace npu_simulator {
namespace {

thread_local c10::DeviceIndex current = 0;

// One stream a device: everything runs in the order in which it was queued.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kNpu; }
  c10::Device getDevice() const override { return {kNpu, current}; }
  void setDevice(c10::Device device) const override { set_device(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    current = device.index() < 0 ? current : device.index();
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override {
    return static_cast<c10::DeviceIndex>(control().device_count);
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  bool isStreamCapturing(const c10::Stream&) const override { return is_capturing(); }
  void synchronizeStream(const c10::Stream& stream) const override { synchronize(stream.device_index(), "stream"); }
  void synchronizeDevice(const c10::DeviceIndex device) const override { synchronize(device, "device"); }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return control().device_count > 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return static_cast<c10::DeviceIndex>(control().device_count); }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex device) const override { set_device(device); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static at::Generator generator = at::detail::createCPUGenerator();
    return generator;
  }
};

}  // namespace

c10::DeviceIndex current_device() { return current; }

void set_device(c10::DeviceIndex device) {
  TORCH_CHECK(
      device < control().device_count, "Invalid device id npu:", static_cast<int>(device), ": expected one below ",
      control().device_count, " (error 107001)");
  current = device < 0 ? current : device;
}

void register_device() {
  static Guard guard;
  c10::impl::device_guard_impl_registry[static_cast<size_t>(kNpu)].store(&guard);
  c10::SetAllocator(kNpu, device_allocator());
  at::RegisterPrivateUse1HooksInterface(new Hooks());
}

}  // namespace npu_simulator
