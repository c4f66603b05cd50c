"""What differs between cpu, cuda and npu, one module each; none imports torch before its device is opened."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from runtime.engines.base import EngineSettings
from runtime.engines.probe import DeviceFacts, DeviceMemory, Mark
from runtime.errors import NoDeviceError
from runtime.manifest import Dtype

if TYPE_CHECKING:
    import torch

TORCH_NPU = "torch_npu"


class Device(Protocol):
    """A device of torch, ready to run graphs."""

    name: str
    facts: DeviceFacts
    # How many tensors `to_device` has waited for the device for, and how many it has made by an operator there.
    put_waits: int
    put_operators: int
    # Of which dtypes it computes no products.
    lacks: frozenset[Dtype]

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy of a host tensor on the device."""

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor's values on the host; waits for the device."""

    def synchronize(self) -> None:
        """Wait until the device has finished."""

    def memory(self) -> DeviceMemory | None:
        """Return what is held on the device."""

    def free_memory(self) -> int | None:
        """Return about how many bytes more it has for this process; None where nobody tells."""

    def release(self) -> None:
        """Give cached memory back to the device."""

    def mark(self) -> Mark:
        """Return a mark behind the work given so far."""

    def seconds(self, start: Mark, end: Mark) -> float:
        """Return the seconds between two marks."""

    def capture(self, call: Callable[[], None]) -> Callable[[], None] | None:
        """Return a function that repeats on the device what `call` does; None where the device cannot."""


def open_torch_device(name: str, settings: EngineSettings) -> Device:
    """Return the device, with all its flags set, before anything has run on it.

    Raises
    ------
    NoDeviceError
        It cannot be used; the message says what is missing.

    """
    kind = name.partition(":")[0]
    if kind == "npu":
        from runtime.engines.devices.npu import NpuDevice

        return NpuDevice(name, settings)
    if kind == "cuda":
        from runtime.engines.devices.cuda import CudaDevice

        return CudaDevice(name, settings)
    from runtime.engines.devices.cpu import CpuDevice

    return CpuDevice(name, settings)


def require_torch_npu(device: str) -> None:
    """Fail where torch_npu is not installed, without importing it.

    Raises
    ------
    NoDeviceError
        It is not.

    """
    if importlib.util.find_spec(TORCH_NPU) is None:
        raise NoDeviceError(f"{device}: torch_npu is not installed; install it beside CANN, or use cpu")
