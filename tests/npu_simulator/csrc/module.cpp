// The Python module: everything that torch_npu's stand-in needs of the device.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "control.h"
#include "device.h"
#include "graph.h"
#include "memory.h"
#include "operators.h"
#include "queue.h"
#include "record.h"

namespace py = pybind11;

namespace npu_simulator {

Control& control() {
  static Control instance;
  return instance;
}

namespace {

py::dict dict_of(const std::map<std::string, Calls>& calls) {
  py::dict result;
  for (const auto& [name, entry] : calls) {
    result[py::str(name)] = py::dict(py::arg("count") = entry.count, py::arg("shapes") = entry.shapes);
  }
  return result;
}

py::dict dict_of(const std::map<std::string, Copies>& copies) {
  py::dict result;
  for (const auto& [name, entry] : copies) {
    result[py::str(name)] = py::dict(
        py::arg("count") = entry.count, py::arg("bytes") = entry.bytes, py::arg("shapes") = entry.shapes);
  }
  return result;
}

py::dict memory_dict(c10::DeviceIndex device) {
  auto memory = memory_statistics(device);
  return py::dict(
      py::arg("allocated") = memory.allocated, py::arg("reserved") = memory.reserved,
      py::arg("peak_allocated") = memory.peak_allocated, py::arg("peak_reserved") = memory.peak_reserved,
      py::arg("allocations") = memory.allocations, py::arg("total") = control().memory_bytes);
}

py::dict record_dict() {
  std::lock_guard<std::mutex> lock(record_mutex());
  const auto& all = record();
  py::list events;
  for (const auto& event : all.events) {
    events.append(py::dict(
        py::arg("name") = event.name, py::arg("value") = event.value,
        py::arg("operators_before") = event.operators_before));
  }
  py::list memory;
  for (int device = 0; device < control().device_count; ++device) {
    memory.append(memory_dict(static_cast<c10::DeviceIndex>(device)));
  }
  return py::dict(
      py::arg("operators_run") = all.operators_run, py::arg("operators") = dict_of(all.operators),
      py::arg("fallbacks") = dict_of(all.fallbacks), py::arg("copies") = dict_of(all.copies),
      py::arg("synchronizations") = all.synchronizations, py::arg("fault_hits") = all.fault_hits,
      py::arg("events") = events, py::arg("memory") = memory);
}

void clear_record() {
  std::lock_guard<std::mutex> lock(record_mutex());
  record() = Record();
}

// Sets everything that a test controls, and forgets what was set before.
void configure(
    const std::string& soc, int devices, size_t memory_bytes, bool forbid_fallback, bool bfloat16, bool attention) {
  control() = Control();
  reset_queues();
  control().soc = soc;
  control().device_count = devices;
  control().memory_bytes = memory_bytes;
  control().forbid_fallback = forbid_fallback;
  control().bfloat16 = bfloat16;
  control().attention = attention;
}

void add_fault(const std::string& operators, const std::string& kind, double amount) {
  control().faults.push_back({std::regex(operators), kind, amount});
}

void fail_at(const std::string& operators, int64_t call, std::optional<int64_t> after) {
  control().asynchronous_error = {std::regex(operators), call, after};
}

}  // namespace
}  // namespace npu_simulator

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace npu_simulator;
  m.def("configure", &configure);
  m.def("deny", [](const std::string& operators) { control().denied.emplace_back(operators); });
  m.def("remove_kernel", [](const std::string& operators) { control().without_kernel.emplace_back(operators); });
  m.def("add_fault", &add_fault);
  m.def("fail_at", &fail_at);
  m.def("set_rounding", [](const std::string& convolution, const std::string& matmul) {
    control().convolution_rounding = convolution;
    control().matmul_rounding = matmul;
  });
  m.def("register_device", &register_device);
  m.def("register_operators", &register_operators);
  m.def("current_device", [] { return static_cast<int>(current_device()); });
  m.def("set_device", [](int device) { set_device(static_cast<c10::DeviceIndex>(device)); });
  m.def("synchronize", [](int device, const std::string& cause) {
    synchronize(static_cast<c10::DeviceIndex>(device), cause);
  });
  m.def("note_event", &note_event);
  m.def("record", &record_dict);
  m.def("clear_record", &clear_record);
  m.def("memory", [](int device) { return memory_dict(static_cast<c10::DeviceIndex>(device)); });
  m.def("reset_peaks", [](int device) { reset_peaks(static_cast<c10::DeviceIndex>(device)); });
  m.def("empty_cache", &empty_cache);
  m.def("is_capturing", &is_capturing);
  py::class_<Graph>(m, "Graph")
      .def(py::init<>())
      .def("begin", &Graph::begin)
      .def("end", &Graph::end)
      .def("replay", &Graph::replay)
      .def("reset", &Graph::reset);
}
