// What the parts of the stub share. The functions of CANN are declared by the headers in the torch_npu wheel.
#pragma once

#include <acl/acl.h>
#include <acl/acl_op_compiler.h>

#include <functional>
#include <string>

namespace stub {

// Sets what aclGetRecentErrMsg tells and returns the code.
aclError fail(aclError code, const std::string& message);

// Fails: the function is linked by torch_npu, but nothing here computes it.
aclError not_emulated(const std::string& function);

// Appends a line to the file named by CANN_STUB_LOG: what torch_npu asked for, in order.
void log(const std::string& line);

// Whether these bytes lie in memory of a device.
bool on_device(const void* address, size_t bytes);

// Gives work to a stream: it runs at once, or at every replay where the stream is being captured. An exception is an
// error of the device: the next synchronisation reports it once, and nothing runs afterwards.
aclError submit(aclrtStream stream, const std::string& name, std::function<void()> work);

// Whether the stream is being captured, and what adds work to the capture.
bool recording(aclrtStream stream);
void record(aclrtStream stream, std::function<void()> work);

// Carries out work unless the device has failed.
void run(const std::string& name, const std::function<void()>& work);

// What the SoC in CANN_STUB_SOC has, by tests/ascend_limits.json; build.py writes the rows.
struct Limits {
  const char* family;
  bool float32_products;
  bool bfloat16;
  int capture_from;  // major version of CANN
  const char* missing;  // operators, each between spaces
};
const Limits& limits();

// The major version of CANN that CANN_STUB_CANN says, or that torch_npu was made for.
int cann_major();

// Reports the device's error, once.
aclError synchronize();

}  // namespace stub
