#include "queue.h"

#include <c10/util/Exception.h>

#include <map>

#include "control.h"
#include "graph.h"
#include "record.h"

namespace npu_simulator {
namespace {

struct Queue {
  bool failed = false;
  bool pending = false;
  std::string culprit;
  int64_t queued_since = 0;
};

std::map<c10::DeviceIndex, Queue> queues;
int64_t matching_calls = 0;

void report_failure(c10::DeviceIndex device, Queue& queue) {
  queue.pending = false;
  TORCH_CHECK(
      false,
      "The Inner error is reported as above. The process exits for this inner error, and the current working operator "
      "name is ", queue.culprit, ". Device npu:", static_cast<int>(device),
      ": aicore exception 507015. Since the operator is called asynchronously, the stacktrace may be inaccurate.");
}

}  // namespace

void enqueue(c10::DeviceIndex device, const std::string& name) {
  auto& queue = queues[device];
  const auto& error = control().asynchronous_error;
  if (!error) {
    return;
  }
  if (queue.failed) {
    queue.queued_since++;
    if (queue.pending && error->after && queue.queued_since > *error->after) {
      report_failure(device, queue);
    }
  } else if (matches(error->operators, name) && ++matching_calls == error->call) {
    queue.failed = queue.pending = true;
    queue.culprit = name;
  }
}

void synchronize(c10::DeviceIndex device, const std::string& cause) {
  TORCH_CHECK(
      !is_capturing(),
      "graph capture: expected no synchronization while the stream is capturing, found ", cause,
      " (error 107027); the capture is invalid");
  count_synchronization(cause);
  auto& queue = queues[device];
  if (queue.pending) {
    report_failure(device, queue);
  }
}

void reset_queues() {
  queues.clear();
  matching_calls = 0;
}

bool has_failed(c10::DeviceIndex device) { return queues[device].failed; }

}  // namespace npu_simulator
