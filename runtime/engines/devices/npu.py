"""torch on an Ascend NPU, by torch_npu.

torch_npu's defaults trade accuracy for speed and hide what a device cannot do, so all of it is set here, before the
first operator: no compilation of operators at run time, no private memory formats, fp32 computed in fp32 where the
device can, and no operator on the CPU.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from runtime.ascend import cann_release, cann_toolkit, installed, soc_family
from runtime.engines.base import EngineSettings
from runtime.engines.channel import FALLBACK_WARNING
from runtime.engines.devices import TORCH_NPU, require_torch_npu
from runtime.engines.devices.accelerator import Accelerator
from runtime.engines.probe import DeviceFacts, is_simulated
from runtime.errors import InputError, NoDeviceError
from runtime.manifest import Dtype

_CAPTURE_ON_310P = (9, 0)


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
        npu.set_compile_mode(jit_compile=False)
        npu.config.allow_internal_format = False
        super().__init__(name, DeviceFacts(), "NPUGraph")
        versions = _versions(npu, name)
        family = soc_family(versions["soc"])
        fp32 = family is None or family.fp32
        self.facts = DeviceFacts(is_simulated(versions), _set_flags(npu, settings, fp32=fp32), versions)
        lacks: dict[Dtype, bool] = {"bfloat16": family is not None and not family.bf16, "float32": not fp32}
        if settings.default_precision:
            # Then float32 is what the device makes of it.
            del lacks["float32"]
        self.lacks = frozenset(dtype for dtype, lacking in lacks.items() if lacking)
        if settings.capture:
            _check_capture(name, versions)

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy on the device. One number goes there as an operator's argument, for which nothing waits.

        A copy of more waits for the whole stream (`copy_between_host_and_device_opapi` in torch_npu's
        CopyKernelOpApi.cpp, 2.9 to 2.13), which a decoder's step would do for its token and again for its position. To
        queue copies from pinned memory is no way out: on 910B3 with torch_npu 2.10.0.post4 and CANN 9.1.0, kernels of
        the same stream read what lay there before (vllm-ascend's pull request 14922); its 11679 went back to copies
        that wait for the 310P.
        """
        if tensor.numel() != 1:
            return super().to_device(tensor)
        self.put_operators += 1
        return torch.full(tensor.shape, tensor.item(), dtype=tensor.dtype, device=self.name)


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


def _set_flags(npu: Any, settings: EngineSettings, *, fp32: bool) -> dict[str, str]:
    """Set what changes numbers and is not right by itself; return what is in force.

    From 910B on that is HF32 in convolutions. Products keep float32 there by default (IsAllowFP32ToFP16 in torch_npu's
    EnvVariables.cpp, 2.9 to 2.13), and on `2.9.0` each option that is set starts the operator compiler. A 310P refuses
    float32 where it is to be kept (errno 161002 of aclnnMm and aclnnConvolution under cubeMathType 0), so there the
    default stays.
    """
    flags = {"jit_compile": "false", "allow_internal_format": "false", "precision_mode": "the device's default"}
    if not fp32:
        # Also those inside a graph of float16, such as a first convolution that is kept in float32.
        flags["float32_products"] = "float16"
    elif not settings.default_precision:
        npu.conv.allow_hf32 = False
    flags["conv.allow_hf32"] = str(npu.conv.allow_hf32).lower()
    flags["matmul.allow_hf32"] = str(npu.matmul.allow_hf32).lower()
    if settings.deterministic:
        torch.use_deterministic_algorithms(mode=True)
    flags["deterministic"] = str(settings.deterministic).lower()
    # By runtime/engines/channel.py, which also ends the process that only warns of one.
    flags["cpu_fallback"] = "forbidden" if os.environ.get("TORCH_NPU_FALLBACK_CPU_DISABLE") == "1" else "allowed"
    return flags


def _check_capture(name: str, versions: Mapping[str, str]) -> None:
    """Refuse what torch_npu cannot capture, before it is tried.

    Raises
    ------
    InputError
        NPUGraph is not to be had here.

    """
    # As NPUGraph::capture_begin does in torch_npu's NPUGraph.cpp, 2.9 to 2.13.
    if os.environ.get("TASK_QUEUE_ENABLE") == "2":
        raise InputError(
            f"capture: {name} cannot capture graphs with TASK_QUEUE_ENABLE=2; set it to 1, or leave out --capture"
        )
    release = cann_release(versions.get("cann", ""))
    if versions["soc"].startswith("Ascend310P") and release is not None and release < _CAPTURE_ON_310P:
        raise InputError(
            f"capture: {versions['soc']} can capture graphs from CANN 9.0 on, found {versions['cann']}; "
            "leave out --capture"
        )


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
