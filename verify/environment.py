"""What the numbers were measured with: versions, machine, memory, environment variables that change results."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from runtime import ascend

PACKAGES = (
    "atlasport",
    "numpy",
    "onnxruntime",
    "torch",
    "torch_npu",
    "transformers",
    "onnx",
    "soundfile",
    "soxr",
    "tokenizers",
    "safetensors",
    "jiwer",
)

# What the kernels may use of the processor's instructions; threads and their placement; then what matters on an Ascend
# machine.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "OPENBLAS_CORETYPE",
    "NPY_DISABLE_CPU_FEATURES",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "GOMP_CPU_AFFINITY",
    *ascend.VARIABLES,
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that matter, read without importing them."""
    installed = {package: package_version for package in PACKAGES if (package_version := _version(package))}
    return {"python": platform.python_version(), **installed}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def variables() -> dict[str, str]:
    """Return the environment variables of `VARIABLES` that are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def system() -> dict[str, str]:
    """Return operating system, kernel and machine type."""
    return {"system": platform.platform(), "machine": platform.machine(), "python": sys.version.split()[0]}


def cpu_model() -> str:
    """Return the processor's name, or the machine type where the system tells no more."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


# Those that change which kernels are taken, of all that /proc/cpuinfo lists.
_ARITHMETIC = ("avx", "fma", "amx", "f16c", "asimd", "sve", "sme", "bf16", "fphp", "i8mm")


def instruction_sets() -> str:
    """Return the processor's instructions for arithmetic, empty where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"flags", "Features"}:
                return " ".join(sorted(name for name in value.split() if name.startswith(_ARITHMETIC)))
    return ""


def cpu_count() -> int:
    """Return the number of logical processors of the machine."""
    return os.cpu_count() or 1


def cpus_usable() -> int:
    """Return the number of logical processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cpu_count()


def memory_bytes() -> int:
    """Return the machine's physical memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def load_average() -> float:
    """Return the mean number of runnable processes over the last minute."""
    return os.getloadavg()[0]


def resident_bytes() -> int:
    """Return the memory in bytes that this process holds now; its peak so far where the system tells only that."""
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """Return the most memory in bytes that this process ever held."""
    return _status("VmHWM")


def _status(key: str) -> int:
    # VmHWM starts anew with the program; ru_maxrss may carry the parent's peak over exec.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return int(value.split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
