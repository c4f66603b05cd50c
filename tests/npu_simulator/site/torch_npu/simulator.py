"""What tests control and read: the simulated device's kind, its faults, its record. The real package has none of this.

Environment variables, read once, when torch_npu is imported:

- NPU_SIMULATOR_SOC: `910B4` (default), `310P3`, ...
- NPU_SIMULATOR_CANN: the version of CANN that it stands for, none by default.
- NPU_SIMULATOR_DEVICES: how many there are, 1 by default; ASCEND_RT_VISIBLE_DEVICES hides some.
- NPU_SIMULATOR_CONTROL: a JSON file with what is to go wrong, see `Control`.
- NPU_SIMULATOR_REPORTS: a folder; each process that imports torch_npu writes its record to `<process id>.json` when
  it exits in good order, and when `write_report` is called.
- TORCH_NPU_FALLBACK_CPU_DISABLE, which the real package reads too.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
from pathlib import Path
from typing import Any, TypedDict

import torch

_HERE = Path(__file__).resolve()
_BUILD = _HERE.parents[2] / "build.py"
_KERNELS = _HERE.parents[2] / "kernels_2.13.json"
_LIMITS = json.loads((_HERE.parents[3] / "ascend_limits.json").read_text(encoding="utf-8"))["socs"]
KINDS = ("fp16", "bf16", "hf32", "gain", "nan")

# torch's own composite kernels call those of csrc/copies.cpp in their place, so that views stay views and copies are
# counted as copies.
_OWN_OR_COMPOSITE = {
    "aten::empty.memory_format",
    "aten::empty_strided",
    "aten::_copy_from",
    "aten::_copy_from_and_resize",
    "aten::_local_scalar_dense",
    "aten::resize_",
    "aten::set_.source_Storage_storage_offset",
    "aten::copy_",
    "aten::_to_copy",
    "aten::clone",
    "aten::empty_like",
    "aten::new_empty_strided",
    "aten::set_",
    "aten::set_.source_Storage",
    "aten::set_.source_Tensor",
    "aten::is_set_to",
    "aten::record_stream",
    "aten::is_pinned",
    "aten::_pin_memory",
    "aten::resize_as_",
    "aten::as_strided_",
    "aten::_lazy_clone",
}


class Fault(TypedDict, total=False):
    """Regular expression of operators, kind (one of KINDS), and for "gain" the factor."""

    operators: str
    kind: str
    amount: float


class AsynchronousError(TypedDict, total=False):
    """The `call`-th (from 1) of the operators fails; reported at the next wait, or `after` more operators."""

    operators: str
    call: int
    after: int


class Control(TypedDict, total=False):
    """The control file.

    Operators are named as `aten::addmm` or with their overload, as regular expressions. Older packages, which
    `ignores_fallback_variable` stands for, warn of a fallback whatever TORCH_NPU_FALLBACK_CPU_DISABLE says.
    """

    deny: list[str]
    without_kernel: list[str]
    faults: list[Fault]
    asynchronous_error: AsynchronousError
    memory_bytes: int
    ignores_fallback_variable: bool


class Flags:
    """The settings that change what the device computes, with the real package's defaults."""

    def __init__(self) -> None:
        self.conv_hf32 = True
        self.matmul_hf32 = False
        self.precision_mode = "allow_fp32_to_fp16"

    def apply(self) -> None:
        """Tell the device how it rounds float32 now.

        A 310P computes matrix products and convolutions in fp16. Told to keep the dtype it refuses them: torch_npu then
        asks for cubeMathType 0, which aclnnMm and aclnnConvolution allow for float32 where the matrix unit has it
        (CheckSocSupportDtype in CANN's ops-nn, matmul_util.cpp and aclnn_convolution.cpp).
        """
        if "float32" not in limits()["products"]:
            kind = "refused" if self.precision_mode == "must_keep_origin_dtype" else "fp16"
            core.set_rounding(kind, kind)
        else:
            core.set_rounding("hf32" if self.conv_hf32 else "", "hf32" if self.matmul_hf32 else "")


def soc_name() -> str:
    """Return the name as CANN gives it, such as Ascend910B4."""
    return "Ascend" + os.environ.get("NPU_SIMULATOR_SOC", "910B4")


def limits() -> dict[str, Any]:
    """Return what the SoC has and refuses (tests/ascend_limits.json)."""
    soc = soc_name().removeprefix("Ascend")
    return next(row for family, row in _LIMITS.items() if soc.startswith(family))


def check_capture() -> None:
    """Raise what CANN ends a capture with where the SoC has none."""
    since, cann = limits()["capture_from"], os.environ.get("NPU_SIMULATOR_CANN")
    if since == "never" or (since and cann and [*map(int, cann.split(".")[:2])] < [*map(int, since.split("."))]):
        raise RuntimeError(f"aclmdlRICaptureBegin: not supported on {soc_name()} by CANN {cann} (error 207000)")


def report() -> dict[str, Any]:
    """Return the record: operators, fallbacks, copies, synchronizations, events (in order), memory by device."""
    return {"soc": soc_name(), "pid": os.getpid(), **core.record()}


def write_report() -> None:
    """Write the record to NPU_SIMULATOR_REPORTS, if set."""
    folder = os.environ.get("NPU_SIMULATOR_REPORTS")
    if folder:
        path = Path(folder, f"{os.getpid()}.json")
        part = path.with_suffix(".part")
        part.write_text(json.dumps(report(), indent=1), encoding="utf-8")
        part.replace(path)


def clear_record() -> None:
    """Forget what was counted; peaks of memory begin anew."""
    core.clear_record()
    for device in range(device_count()):
        core.reset_peaks(device)


def device_count() -> int:
    """Return how many devices are visible."""
    count = int(os.environ.get("NPU_SIMULATOR_DEVICES", "1"))
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if visible is None:
        return count
    return sum(int(index) < count for index in visible.split(",") if index)


def install() -> None:
    """Give torch the device; called once, by the package."""
    path = os.environ.get("NPU_SIMULATOR_CONTROL")
    apply(json.loads(Path(path).read_text(encoding="utf-8")) if path else {})
    core.register_device()
    core.register_operators(_kernel_names())
    atexit.register(write_report)


def apply(control: Control) -> None:
    """Replace what was controlled before; the queues are healthy again. Reads the environment anew."""
    if unknown := control.keys() - Control.__annotations__.keys():
        raise ValueError(f"control: expected {', '.join(Control.__annotations__)}, found {', '.join(sorted(unknown))}")
    core.configure(
        soc_name(),
        device_count(),
        control.get("memory_bytes", 32 << 30),
        os.environ.get("TORCH_NPU_FALLBACK_CPU_DISABLE") == "1" and not control.get("ignores_fallback_variable"),
        limits()["bfloat16"],
        limits()["attention"],
    )
    for operators in control.get("deny", ()):
        core.deny(operators)
    for operators in control.get("without_kernel", ()):
        core.remove_kernel(operators)
    for fault in control.get("faults", ()):
        if fault["kind"] not in KINDS:
            raise ValueError(f"control: fault: expected one of {', '.join(KINDS)}, found {fault['kind']}")
        core.add_fault(fault["operators"], fault["kind"], fault.get("amount", 1.0))
    if error := control.get("asynchronous_error"):
        core.fail_at(error["operators"], error.get("call", 1), error.get("after"))
    flags.apply()


def restart() -> None:
    """Be as after a new start of the process, with nothing that is to go wrong; the record stays."""
    flags.__init__()  # type: ignore[misc]
    apply({})
    core.set_device(0)


def _kernel_names() -> list[str]:
    """Return the operators for which the real package has kernels, less those of csrc/copies.cpp.

    An operator whose `out` form alone is listed has the other two forms as well: torch derives them.
    """
    known = set(torch._C._dispatch_get_all_op_names())
    names = set(json.loads(_KERNELS.read_text(encoding="utf-8")))
    for name in list(names):
        if name.endswith(".out"):
            names |= {name.removesuffix(".out"), name.removesuffix(".out") + "_"}
    return sorted((names & known) - _OWN_OR_COMPOSITE)


def _module_from(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


core: Any = _module_from(_module_from(_BUILD).built_library())
flags = Flags()
