#include "graph.h"

#include <ATen/ops/clone.h>
#include <c10/util/Exception.h>

#include <cstring>

#include "host.h"
#include "memory.h"
#include "record.h"

namespace npu_simulator {
namespace {

Graph* capturing = nullptr;

}  // namespace

bool is_capturing() { return capturing != nullptr; }

Graph* capturing_graph() { return capturing; }

void Graph::begin() {
  TORCH_CHECK(capturing == nullptr, "graph capture: expected no capture under way, found one");
  TORCH_CHECK(work_.empty(), "graph capture: expected an empty graph, found a captured one; reset it first");
  note_event("capture_begin", "");
  capturing = this;
}

void Graph::will_be_restored(const at::Tensor& written) { saved_.push_back({written, on_host(written).clone()}); }

void Graph::end() {
  TORCH_CHECK(capturing == this, "graph capture: expected to end the capture under way, found none");
  capturing = nullptr;
  for (auto saved = saved_.rbegin(); saved != saved_.rend(); ++saved) {
    on_host(saved->tensor).copy_(saved->content);
  }
  saved_.clear();
  for (const auto& output : outputs_) {
    std::memset(output.storage().mutable_data(), kPoison, output.storage().nbytes());
  }
  outputs_.clear();
  complete_ = true;
  note_event("capture_end", std::to_string(work_.size()));
}

void Graph::replay() {
  TORCH_CHECK(complete_, "graph replay: expected a captured graph, found none");
  TORCH_CHECK(capturing == nullptr, "graph replay: expected no capture under way, found one");
  note_event("replay", std::to_string(work_.size()));
  for (const auto& work : work_) {
    work();
  }
}

void Graph::reset() {
  if (capturing == this) {
    capturing = nullptr;
  }
  work_.clear();
  outputs_.clear();
  saved_.clear();
  complete_ = false;
}

}  // namespace npu_simulator
