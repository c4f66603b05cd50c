// Graph capture: what is queued while capturing is recorded and runs at each replay, on the same memory.
//
// As on the device, nothing has been computed when the capture ends: its outputs are undefined (poison) and tensors
// that it writes to are as they were before, until the first replay.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <vector>

namespace npu_simulator {

class Graph {
 public:
  void begin();
  void end();
  void replay();
  void reset();

  // Used while capturing.
  void add(std::function<void()> work) { work_.push_back(std::move(work)); }
  void will_be_undefined(const at::Tensor& output) { outputs_.push_back(output); }
  void will_be_restored(const at::Tensor& written);

 private:
  struct Saved {
    at::Tensor tensor;
    at::Tensor content;  // on the host
  };
  std::vector<std::function<void()>> work_;
  std::vector<at::Tensor> outputs_;
  std::vector<Saved> saved_;
  bool complete_ = false;
};

bool is_capturing();
// The graph that is being captured, nullptr where none is.
Graph* capturing_graph();

}  // namespace npu_simulator
