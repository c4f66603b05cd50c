#include "record.h"

namespace npu_simulator {

Record& record() {
  static Record instance;
  return instance;
}

std::mutex& record_mutex() {
  static std::mutex mutex;
  return mutex;
}

void count_operator(const std::string& name, const std::string& shapes, bool fallback) {
  std::lock_guard<std::mutex> lock(record_mutex());
  auto& calls = (fallback ? record().fallbacks : record().operators)[name];
  calls.count++;
  calls.shapes[shapes]++;
  record().operators_run++;
}

void count_copy(const std::string& direction, const std::string& shape, int64_t bytes) {
  std::lock_guard<std::mutex> lock(record_mutex());
  auto& copies = record().copies[direction];
  copies.count++;
  copies.bytes += bytes;
  copies.shapes[shape]++;
}

void count_synchronization(const std::string& cause) {
  std::lock_guard<std::mutex> lock(record_mutex());
  record().synchronizations[cause]++;
}

void count_fault(const std::string& name) {
  std::lock_guard<std::mutex> lock(record_mutex());
  record().fault_hits[name]++;
}

void note_event(const std::string& name, const std::string& value) {
  std::lock_guard<std::mutex> lock(record_mutex());
  record().events.push_back({name, value, record().operators_run});
}

}  // namespace npu_simulator
