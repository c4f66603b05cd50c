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

// Reports the device's error, once.
aclError synchronize();

}  // namespace stub
