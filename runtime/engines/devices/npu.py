"""torch on an Ascend NPU, by torch_npu.

torch_npu's defaults trade accuracy for speed and hide what a device cannot do, so all of it is set here, before the
first operator: no compilation of operators at run time, no private memory formats, fp32 computed in fp32, and no
operator on the CPU.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import torch

from runtime.ascend import cann_toolkit, installed
from runtime.engines.base import EngineSettings
from runtime.engines.channel import FALLBACK_WARNING
from runtime.engines.devices import TORCH_NPU, require_torch_npu
from runtime.engines.devices.accelerator import Accelerator
from runtime.engines.probe import DeviceFacts, is_simulated
from runtime.errors import NoDeviceError


class NpuDevice(Accelerator):
    """An NPU with its flags set.

    Parameters
    ----------
    name : str
        `npu:N`.
    settings : EngineSettings
        Precision and determinism.

    Raises
    ------
    NoDeviceError
        torch_npu is not installed or not importable, or sees no such device.

    """

    def __init__(self, name: str, settings: EngineSettings) -> None:
        npu = _import(name)
        _check_count(name, npu)
        warnings.filterwarnings("error", message=rf"(?s).*{FALLBACK_WARNING}")
        flags = _set_flags(npu, settings)
        super().__init__(name, DeviceFacts(flags=flags), "NPUGraph")
        versions = _versions(npu, name)
        self.facts = DeviceFacts(is_simulated(versions), flags, versions)


def _import(name: str) -> Any:
    """Import torch_npu and return its `npu` module."""
    require_torch_npu(name)
    try:
        return importlib.import_module(TORCH_NPU).npu
    except Exception as error:  # what it raises without CANN differs from version to version
        reason = str(error).strip().partition("\n")[0]
        cann, path = cann_toolkit()
        beside = f"torch {torch.__version__} and {f'CANN {cann} in {path}' if cann else 'no CANN'}"
        raise NoDeviceError(
            f"{name}: torch_npu {installed(TORCH_NPU)} cannot be imported beside {beside}: {reason}; "
            "install the CANN that belongs to it and source its set_env.sh"
        ) from error


def _check_count(name: str, npu: Any) -> None:
    try:
        count = npu.device_count()
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise NoDeviceError(f"{name}: torch_npu cannot ask the driver: {reason}; check `npu-smi info`") from error
    if int(name.partition(":")[2]) >= count:
        raise NoDeviceError(
            f"{name}: expected such a device, torch_npu sees {count}; check `npu-smi info`, ASCEND_RT_VISIBLE_DEVICES "
            "and the rights on /dev/davinci*"
        )


def _set_flags(npu: Any, settings: EngineSettings) -> dict[str, str]:
    """Set everything that changes numbers or speed; return what was set."""
    npu.set_compile_mode(jit_compile=False)
    npu.config.allow_internal_format = False
    flags = {"jit_compile": "false", "allow_internal_format": "false"}
    if not settings.default_precision:
        # Before 910B the default lets fp32 matrix products run in fp16. The environment variable of this name is not
        # read (torch_npu 2.9 to 2.13): it is an option.
        npu.set_option({"ACL_PRECISION_MODE": "must_keep_origin_dtype"})
        npu.conv.allow_hf32 = False
        npu.matmul.allow_hf32 = False
    flags["precision_mode"] = "the device's default" if settings.default_precision else "must_keep_origin_dtype"
    flags["conv.allow_hf32"] = str(npu.conv.allow_hf32).lower()
    flags["matmul.allow_hf32"] = str(npu.matmul.allow_hf32).lower()
    if settings.deterministic:
        torch.use_deterministic_algorithms(mode=True)
    flags["deterministic"] = str(settings.deterministic).lower()
    # By runtime/engines/channel.py, which also ends the process that only warns of one.
    flags["cpu_fallback"] = "forbidden" if os.environ.get("TORCH_NPU_FALLBACK_CPU_DISABLE") == "1" else "allowed"
    return flags


def _versions(npu: Any, name: str) -> dict[str, str]:
    """Return the versions of what is loaded: CANN's and the driver's own answers, else that of the toolkit's files."""
    package = importlib.import_module(TORCH_NPU)
    versions = {"torch": str(torch.__version__), TORCH_NPU: str(package.__version__)}
    versions["soc"] = str(npu.get_device_name(name))
    found = {"cann": _loaded_version("CANN") or cann_toolkit()[0], "driver": _loaded_version("DRIVER")}
    return versions | {part: version for part, version in found.items() if version}


def _loaded_version(part: str) -> str:
    """Return what the loaded CANN says of a part of it; empty where it does not say."""
    try:
        return str(importlib.import_module(f"{TORCH_NPU}.npu.utils").get_cann_version(part) or "")
    except (AttributeError, ImportError, RuntimeError, TypeError):  # not in every version
        return ""
