// Each device's queue of work: healthy until an operator fails in it.
//
// The device works behind the host's back, so a failure shows later: at the next synchronization or after some more
// operators one exception is thrown, and none after it. From the failing operator on nothing is computed; results keep
// what lay in their memory before, and copies to the host return that without a word. This is what torch_npu does.
#pragma once
#include <c10/core/Device.h>

#include <string>

namespace npu_simulator {

// An operator is queued: it may be the one that fails; throws an error that is due.
void enqueue(c10::DeviceIndex device, const std::string& name);

// The host waits: counts it under `cause` and throws an error that is pending.
void synchronize(c10::DeviceIndex device, const std::string& cause);

// All queues are healthy again, as after a new start of the process.
void reset_queues();

// Whether an operator of the device has failed: nothing is computed or copied on it any more.
bool has_failed(c10::DeviceIndex device);

}  // namespace npu_simulator
