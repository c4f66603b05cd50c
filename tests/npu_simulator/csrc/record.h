// What the device was asked to do, for the report that tests read.
#pragma once
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace npu_simulator {

struct Calls {
  int64_t count = 0;
  std::map<std::string, int64_t> shapes;  // "Float[1, 80, 600];Float[64, 80, 3]" -> calls
};

struct Copies {
  int64_t count = 0;
  int64_t bytes = 0;
  std::map<std::string, int64_t> shapes;
};

// A setting or another event worth its place in the order of things.
struct Event {
  std::string name;
  std::string value;
  int64_t operators_before;
};

struct Record {
  std::map<std::string, Calls> operators;     // by name with overload
  std::map<std::string, Calls> fallbacks;     // operators without a kernel on the device
  std::map<std::string, Copies> copies;       // host_to_device, device_to_host, device_to_device
  std::map<std::string, int64_t> synchronizations;  // by cause
  std::map<std::string, int64_t> fault_hits;  // by operator and kind
  std::vector<Event> events;
  int64_t operators_run = 0;
};

// The one record of the process; take the mutex first.
Record& record();
std::mutex& record_mutex();

void count_operator(const std::string& name, const std::string& shapes, bool fallback);
void count_copy(const std::string& direction, const std::string& shape, int64_t bytes);
void count_synchronization(const std::string& cause);
void count_fault(const std::string& name);
void note_event(const std::string& name, const std::string& value);

}  // namespace npu_simulator
