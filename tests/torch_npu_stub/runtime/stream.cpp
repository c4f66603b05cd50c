// Streams and events. Work runs when it is given, so a stream is never behind.
#include "stub.h"

#include <chrono>
#include <mutex>
#include <stdexcept>

namespace {

using Clock = std::chrono::steady_clock;

struct Event {
  Clock::time_point time;
  bool recorded = false;
};

std::mutex lock;
bool failed = false;
std::string unreported;

aclError create_event(aclrtEvent* event) {
  *event = new Event;
  return ACL_SUCCESS;
}

aclError synchronize_stream(aclrtStream stream) {
  stub::log("synchronize");
  if (stub::recording(stream)) {
    return stub::fail(ACL_ERROR_RT_STREAM_CAPTURED, "a stream that is being captured cannot be waited for");
  }
  return stub::synchronize();
}

}  // namespace

void stub::run(const std::string& name, const std::function<void()>& work) {
  {
    std::lock_guard<std::mutex> guard(lock);
    if (failed) return;
  }
  try {
    work();
  } catch (const std::exception& error) {
    std::lock_guard<std::mutex> guard(lock);
    failed = true;
    unreported = name + ": " + error.what();
  }
}

aclError stub::submit(aclrtStream stream, const std::string& name, std::function<void()> work) {
  if (recording(stream)) {
    record(stream, [name, work = std::move(work)] { run(name, work); });
  } else {
    run(name, work);
  }
  return ACL_SUCCESS;
}

aclError stub::synchronize() {
  std::string message;
  {
    std::lock_guard<std::mutex> guard(lock);
    message.swap(unreported);
  }
  return message.empty() ? ACL_SUCCESS : fail(ACL_ERROR_RT_AICORE_EXCEPTION, message);
}

extern "C" {

aclError aclrtCreateStream(aclrtStream* stream) {
  *stream = new char;
  return ACL_SUCCESS;
}

aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t, uint32_t) { return aclrtCreateStream(stream); }

aclError aclrtDestroyStream(aclrtStream stream) {
  delete static_cast<char*>(stream);
  return ACL_SUCCESS;
}

aclError aclrtDestroyStreamForce(aclrtStream stream) { return aclrtDestroyStream(stream); }

aclError aclrtStreamGetId(aclrtStream stream, int32_t* id) {
  *id = static_cast<int32_t>(reinterpret_cast<intptr_t>(stream) >> 4);
  return ACL_SUCCESS;
}

aclError aclrtStreamQuery(aclrtStream, aclrtStreamStatus* status) {
  *status = ACL_STREAM_STATUS_COMPLETE;
  return ACL_SUCCESS;
}

aclError aclrtStreamWaitEvent(aclrtStream, aclrtEvent) { return ACL_SUCCESS; }

aclError aclrtSynchronizeStream(aclrtStream stream) { return synchronize_stream(stream); }
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t) { return synchronize_stream(stream); }
aclError aclrtSynchronizeDevice() { return synchronize_stream(nullptr); }
aclError aclrtSynchronizeDeviceWithTimeout(int32_t) { return synchronize_stream(nullptr); }

aclError aclrtSetStreamOverflowSwitch(aclrtStream, uint32_t) { return ACL_SUCCESS; }

aclError aclrtGetStreamOverflowSwitch(aclrtStream, uint32_t* flag) {
  *flag = 0;
  return ACL_SUCCESS;
}

aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t) { return create_event(event); }
aclError aclrtCreateEventExWithFlag(aclrtEvent* event, uint32_t) { return create_event(event); }

aclError aclrtDestroyEvent(aclrtEvent event) {
  delete static_cast<Event*>(event);
  return ACL_SUCCESS;
}

aclError aclrtRecordEvent(aclrtEvent event, aclrtStream) {
  *static_cast<Event*>(event) = {Clock::now(), true};
  return ACL_SUCCESS;
}

aclError aclrtResetEvent(aclrtEvent event, aclrtStream) {
  static_cast<Event*>(event)->recorded = false;
  return ACL_SUCCESS;
}

aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus* status) {
  const bool recorded = static_cast<Event*>(event)->recorded;
  *status = recorded ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  return ACL_SUCCESS;
}

aclError aclrtQueryEventWaitStatus(aclrtEvent, aclrtEventWaitStatus* status) {
  *status = ACL_EVENT_WAIT_STATUS_COMPLETE;
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeEvent(aclrtEvent) { return stub::synchronize(); }

aclError aclrtEventElapsedTime(float* milliseconds, aclrtEvent from, aclrtEvent to) {
  const auto *first = static_cast<Event*>(from), *last = static_cast<Event*>(to);
  if (!first->recorded || !last->recorded) return stub::fail(ACL_ERROR_RT_PARAM_INVALID, "an event was not recorded");
  *milliseconds = std::chrono::duration<float, std::milli>(last->time - first->time).count();
  return ACL_SUCCESS;
}

aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
aclError aclrtGetLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }

}  // extern "C"
