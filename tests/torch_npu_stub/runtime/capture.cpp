// Capture of a stream's work: recorded and not run; a replay runs it on the same addresses.
#include "stub.h"

#include <map>
#include <mutex>
#include <vector>

namespace {

struct Graph {
  std::vector<std::function<void()>> work;
};

std::mutex lock;
std::map<aclrtStream, Graph*> captures;

Graph* capture_of(aclrtStream stream) {
  std::lock_guard<std::mutex> guard(lock);
  auto found = captures.find(stream);
  return found == captures.end() ? nullptr : found->second;
}

}  // namespace

bool stub::recording(aclrtStream stream) { return capture_of(stream) != nullptr; }

void stub::record(aclrtStream stream, std::function<void()> work) {
  capture_of(stream)->work.push_back(std::move(work));
}

extern "C" {

aclError aclmdlRICaptureBegin(aclrtStream stream, aclmdlRICaptureMode) {
  stub::log("capture");
  if (stub::cann_major() < stub::limits().capture_from) {
    return stub::fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "capture is not supported on this SoC by this CANN");
  }
  if (stub::recording(stream)) return stub::fail(ACL_ERROR_RT_STREAM_CAPTURED, "the stream is being captured");
  std::lock_guard<std::mutex> guard(lock);
  captures[stream] = new Graph;
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureGetInfo(aclrtStream stream, aclmdlRICaptureStatus* status, aclmdlRI* graph) {
  Graph* found = capture_of(stream);
  *status = found == nullptr ? ACL_MODEL_RI_CAPTURE_STATUS_NONE : ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE;
  if (graph != nullptr) *graph = found;
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureEnd(aclrtStream stream, aclmdlRI* graph) {
  std::lock_guard<std::mutex> guard(lock);
  auto found = captures.find(stream);
  if (found == captures.end()) return stub::fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "the stream is not being captured");
  *graph = found->second;
  captures.erase(found);
  return ACL_SUCCESS;
}

aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
  static thread_local aclmdlRICaptureMode current = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;
  std::swap(current, *mode);
  return ACL_SUCCESS;
}

aclError aclmdlRIExecuteAsync(aclmdlRI graph, aclrtStream stream) {
  stub::log("replay");
  const auto* recorded = static_cast<Graph*>(graph);
  return stub::submit(stream, "replay", [recorded] {
    for (const auto& work : recorded->work) work();
  });
}

aclError aclmdlRIDestroy(aclmdlRI graph) {
  delete static_cast<Graph*>(graph);
  return ACL_SUCCESS;
}

// A capture switches its record of shapes for tracing on and off.
aclError aclrtSetStreamAttribute(aclrtStream, aclrtStreamAttr, aclrtStreamAttrValue*) { return ACL_SUCCESS; }

aclError aclmdlRIGetId(aclmdlRI graph, uint32_t* id) {
  *id = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(graph) >> 4);
  return ACL_SUCCESS;
}

}  // extern "C"
