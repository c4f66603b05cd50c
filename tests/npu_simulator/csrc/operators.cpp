// Operators: every one is checked, counted, perhaps made to fail, and computed by the CPU's kernel.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>
#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "operators.h"

#include "control.h"
#include "device.h"
#include "faults.h"
#include "graph.h"
#include "host.h"
#include "queue.h"
#include "record.h"

namespace npu_simulator {
namespace {

using c10::IValue;
using c10::OperatorHandle;
using torch::jit::Stack;

// Where a zero-dimensional CPU tensor takes the place of a scalar, torch_npu calls the scalar's kernel.
const std::regex kTakesScalars(
    "aten::(add|sub|rsub|mul|div|floor_divide|remainder|fmod|pow|maximum|minimum|eq|ne|lt|le|gt|ge|clamp|where|fill|"
    "masked_fill|index_fill|logical_(and|or|xor)|bitwise_(and|or|xor))_?");
// Their results' shape or value has to be known on the host.
const std::regex kSynchronizes("aten::(equal|nonzero|masked_select|unique.*|_unique.*)");

std::string name_of(const OperatorHandle& op) { return c10::toString(op.operator_name()); }

void for_each_tensor(const IValue& value, const std::function<void(const at::Tensor&)>& visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const auto& tensor : value.toTensorVector()) {
      visit(tensor);
    }
  } else if (value.isOptionalTensorList()) {
    for (const auto& tensor : value.toOptionalTensorVector()) {
      visit(tensor.value_or(at::Tensor()));
    }
  }
}

// The device of the tensors, which must all be on it; that of the arguments where there is no tensor.
c10::DeviceIndex device_of(const std::string& name, const std::vector<IValue>& arguments) {
  std::optional<at::Device> found;
  std::optional<at::Device> wanted;
  for (const auto& value : arguments) {
    if (value.isDevice()) {
      wanted = value.toDevice();
    }
    for_each_tensor(value, [&](const at::Tensor& tensor) {
      if (!tensor.defined() || tensor.is_cpu()) {
        return;
      }
      TORCH_CHECK(
          tensor.device().type() == kNpu && (!found || *found == tensor.device()),
          "Expected all tensors to be on the same device, but found at least two devices, ",
          found ? found->str() : "npu", " and ", tensor.device().str(), "! (operator ", name, ")");
      found = tensor.device();
    });
  }
  bool scalars = matches(kTakesScalars, name);
  for (const auto& value : arguments) {
    for_each_tensor(value, [&](const at::Tensor& tensor) {
      TORCH_CHECK(
          !found || !tensor.defined() || !tensor.is_cpu() || (scalars && tensor.dim() == 0),
          "Expected all tensors to be on the same device. Expected NPU tensor, please check whether the input tensor "
          "device is correct. (operator ", name, ": found ", described(tensor), " on the CPU)");
    });
  }
  auto device = found ? found : wanted;
  return device && device->has_index() ? device->index() : current_device();
}

std::string shapes_of(const std::vector<IValue>& arguments) {
  std::string shapes;
  for (const auto& value : arguments) {
    for_each_tensor(value, [&](const at::Tensor& tensor) {
      shapes += (shapes.empty() ? "" : ";") + described(tensor);
    });
  }
  return shapes;
}

// One argument as the CPU's kernel takes it. What the kernel writes to goes into device memory unless the device has
// failed; an output that may be resized is written back afterwards.
IValue host_argument(
    const c10::Argument& argument, const IValue& value, const std::string& rounding, bool failed) {
  if (value.isDevice()) {
    return at::Device(at::kCPU);
  }
  bool written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
  auto host = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) {
      return tensor;
    }
    if (argument.is_out()) {
      return at::empty({0}, at::TensorOptions().dtype(tensor.scalar_type()));
    }
    auto alias = on_host(tensor);
    if (written) {
      return failed ? alias.clone() : alias;
    }
    bool round = !rounding.empty() && tensor.scalar_type() == at::kFloat && !tensor.is_cpu();
    return round ? rounded(alias, rounding) : alias;
  };
  if (value.isTensor()) {
    return host(value.toTensor());
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for_each_tensor(value, [&](const at::Tensor& tensor) { list.push_back(host(tensor)); });
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for_each_tensor(value, [&](const at::Tensor& tensor) {
      list.push_back(tensor.defined() ? std::optional<at::Tensor>(host(tensor)) : std::nullopt);
    });
    return list;
  }
  return value;
}

const OperatorHandle& kernel_for(const OperatorHandle& op) {
  static const auto overrideable =
      c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution_overrideable", "");
  static const auto convolution = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution", "");
  return op == overrideable ? convolution : op;
}

// Runs the CPU's kernel. Results come on the host, but for those that are arguments written to: these are returned.
std::vector<IValue> compute(const OperatorHandle& op, const std::vector<IValue>& arguments, c10::DeviceIndex device) {
  const auto& schema = op.schema();
  auto name = name_of(op);
  auto rounding = rounding_of(name);
  bool failed = has_failed(device);
  Stack stack;
  for (size_t i = 0; i < arguments.size(); ++i) {
    stack.push_back(host_argument(schema.arguments()[i], arguments[i], rounding, failed));
  }
  auto given = stack;
  kernel_for(op).redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);

  std::vector<IValue> written;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& argument = schema.arguments()[i];
    if (argument.alias_info() == nullptr || !argument.alias_info()->isWrite()) {
      continue;
    }
    written.push_back(arguments[i]);
    if (given[i].isTensor() && given[i].toTensor().defined()) {
      distort(name, given[i].toTensor());
      if (argument.is_out()) {
        const auto& target = arguments[i].toTensor();
        if (target.sizes() != given[i].toTensor().sizes()) {
          target.resize_(given[i].toTensor().sizes());
        }
        if (!failed) {
          on_host(target).copy_(given[i].toTensor());
        }
      }
    }
  }
  size_t next = 0;
  for (size_t i = 0; i < stack.size(); ++i) {
    const auto* alias = schema.returns()[i].alias_info();
    TORCH_CHECK(
        alias == nullptr || alias->isWrite(), "the simulated npu has no kernel for the view operator ", name,
        "; add one to csrc/copies.cpp");
    if (alias != nullptr) {
      stack[i] = written.at(next++);
    } else {
      for_each_tensor(stack[i], [&](const at::Tensor& tensor) { distort(name, tensor); });
    }
  }
  return stack;
}

bool is_new(const OperatorHandle& op, size_t i) { return op.schema().returns()[i].alias_info() == nullptr; }

// The results in device memory of their own.
std::vector<IValue> placed(const OperatorHandle& op, const std::vector<IValue>& results, c10::DeviceIndex device) {
  auto outputs = results;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!is_new(op, i)) {
      continue;
    }
    if (outputs[i].isTensor() && outputs[i].toTensor().defined()) {
      outputs[i] = on_device(outputs[i].toTensor(), device);
    } else if (outputs[i].isTensorList()) {
      c10::List<at::Tensor> list;
      for_each_tensor(results[i], [&](const at::Tensor& tensor) { list.push_back(on_device(tensor, device)); });
      outputs[i] = list;
    }
  }
  return outputs;
}

// What a replay does for one captured operator: the same work, into the memory of the captured outputs.
void replay(
    const OperatorHandle& op, const std::vector<IValue>& arguments, const std::vector<IValue>& outputs,
    c10::DeviceIndex device) {
  enqueue(device, name_of(op));
  count_operator(name_of(op), shapes_of(arguments), false);
  auto results = compute(op, arguments, device);
  for (size_t i = 0; i < results.size(); ++i) {
    if (!is_new(op, i) || has_failed(device)) {
      continue;
    }
    std::vector<at::Tensor> targets;
    for_each_tensor(outputs[i], [&](const at::Tensor& tensor) { targets.push_back(tensor); });
    size_t next = 0;
    for_each_tensor(results[i], [&](const at::Tensor& tensor) {
      const auto& target = targets[next++];
      if (tensor.defined()) {
        on_host(target).copy_(tensor);
      }
    });
  }
}

void capture(
    Graph& graph, const OperatorHandle& op, const std::vector<IValue>& arguments, const std::vector<IValue>& outputs,
    c10::DeviceIndex device) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (is_new(op, i)) {
      for_each_tensor(outputs[i], [&](const at::Tensor& tensor) {
        if (tensor.defined()) {
          graph.will_be_undefined(tensor);
        }
      });
    }
  }
  graph.add([op, arguments, outputs, device] { replay(op, arguments, outputs, device); });
}

void before_capture(Graph& graph, const OperatorHandle& op, const std::vector<IValue>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = op.schema().arguments()[i].alias_info();
    if (alias != nullptr && alias->isWrite()) {
      for_each_tensor(arguments[i], [&](const at::Tensor& tensor) { graph.will_be_restored(tensor); });
    }
  }
}

// Where the SoC has no kernel for it, and with a float mask, torch_npu leaves attention to the operators that it is made of.
bool attention_is_one_kernel(const std::vector<IValue>& arguments) {
  const auto& mask = arguments[3];
  return control().attention && (mask.isNone() || !mask.toTensor().defined() || mask.toTensor().scalar_type() == at::kBool);
}

at::Tensor attention_from_parts(const std::vector<IValue>& arguments) {
  auto mask = arguments[3].toOptional<at::Tensor>();
  return std::get<0>(at::_scaled_dot_product_attention_math(
      arguments[0].toTensor(), arguments[1].toTensor(), arguments[2].toTensor(), mask, arguments[4].toDouble(),
      arguments[5].toBool(), std::nullopt, arguments[6].toOptional<double>(), arguments[7].toBool()));
}

void check_dtypes(const std::string& name, const std::vector<IValue>& arguments) {
  for (const auto& value : arguments) {
    for_each_tensor(value, [&](const at::Tensor& tensor) {
      TORCH_CHECK(
          control().bfloat16 || !tensor.defined() || tensor.scalar_type() != at::kBFloat16, "The operator '", name,
          "' does not support DT_BFLOAT16 on ", control().soc, " (error EZ1001).");
    });
  }
}

void check_fallback(const std::string& name, c10::DeviceIndex device) {
  TORCH_CHECK(
      !control().forbid_fallback, "The operator '", name,
      "' is not currently supported on the NPU backend, but CPU fallback is disabled by "
      "TORCH_NPU_FALLBACK_CPU_DISABLE=1.");
  TORCH_CHECK(
      !is_capturing(), "graph capture: expected operators of the device, found ", name, ", computed on the CPU");
  TORCH_WARN(
      "CAUTION: The operator '", name, "' is not currently supported on the NPU backend and will fall back to run on "
      "the CPU. This may have performance implications.");
  synchronize(device, "fallback");
}

void count_fallback_copies(const char* direction, const std::vector<IValue>& values) {
  for (const auto& value : values) {
    for_each_tensor(value, [&](const at::Tensor& tensor) {
      if (tensor.defined()) {
        count_copy(direction, described(tensor), static_cast<int64_t>(tensor.nbytes()));
      }
    });
  }
}

bool any_matches(const std::vector<std::regex>& patterns, const std::string& name) {
  return std::any_of(patterns.begin(), patterns.end(), [&](const auto& pattern) { return matches(pattern, name); });
}

void run(const OperatorHandle& op, Stack* stack, bool registered) {
  auto name = name_of(op);
  bool has_kernel = registered && !any_matches(control().without_kernel, name);
  auto count = op.schema().arguments().size();
  std::vector<IValue> arguments(stack->end() - static_cast<std::ptrdiff_t>(count), stack->end());
  auto device = device_of(name, arguments);
  TORCH_CHECK(
      !any_matches(control().denied, name), "The operator '", name, "' is not supported on ", control().soc,
      " (error EZ9999: denied by the simulated device's control file).");
  check_dtypes(name, arguments);
  if (op.operator_name().name == "aten::scaled_dot_product_attention" && !attention_is_one_kernel(arguments)) {
    torch::jit::drop(*stack, count);
    stack->push_back(attention_from_parts(arguments));
    return;
  }
  count_operator(name, shapes_of(arguments), !has_kernel);
  if (!has_kernel) {
    check_fallback(name, device);
    count_fallback_copies("device_to_host", arguments);
  }
  auto* graph = capturing_graph();
  if (graph != nullptr) {
    before_capture(*graph, op, arguments);
  }
  enqueue(device, name);
  if (matches(kSynchronizes, name)) {
    synchronize(device, name);
  }
  auto outputs = placed(op, compute(op, arguments, device), device);
  if (!has_kernel) {
    count_fallback_copies("host_to_device", outputs);
  }
  if (graph != nullptr) {
    capture(*graph, op, arguments, outputs, device);
  }
  torch::jit::drop(*stack, count);
  stack->insert(stack->end(), outputs.begin(), outputs.end());
}

bool returns_view(const OperatorHandle& op) {
  for (const auto& result : op.schema().returns()) {
    if (result.alias_info() != nullptr && !result.alias_info()->isWrite()) {
      return true;
    }
  }
  return false;
}

void kernel(const OperatorHandle& op, Stack* stack) { run(op, stack, true); }

void fallback(const OperatorHandle& op, Stack* stack) { run(op, stack, false); }

}  // namespace

void register_operators(const std::vector<std::string>& names) {
  // Never unregistered: torch's own tables may be gone when the process ends.
  static auto& handles = *new std::vector<c10::RegistrationHandleRAII>();
  for (const auto& name : names) {
    auto dot = name.find('.');
    c10::OperatorName operator_name(name.substr(0, dot), dot == std::string::npos ? "" : name.substr(dot + 1));
    if (returns_view(c10::Dispatcher::singleton().findSchemaOrThrow(
            operator_name.name.c_str(), operator_name.overload_name.c_str()))) {
      continue;
    }
    handles.push_back(c10::Dispatcher::singleton().registerImpl(
        std::move(operator_name), c10::DispatchKey::PrivateUse1,
        c10::KernelFunction::makeFromBoxedFunction<&kernel>(), std::nullopt, nullptr, "simulated npu"));
  }
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

}  // namespace npu_simulator
