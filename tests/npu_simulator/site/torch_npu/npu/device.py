"""Devices: number, names, the current one, waiting for one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from torch_npu import simulator


def index_of(device: Any) -> int:
    """Return the index of "npu:1", torch.device("npu", 1), 1 or None (the current device)."""
    if device is None:
        return current_device()
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return current_device() if index is None else index


def init() -> None:
    pass


def is_initialized() -> bool:
    return True


def is_available() -> bool:
    return device_count() > 0


def _is_in_bad_fork() -> bool:
    return False


def device_count() -> int:
    return simulator.device_count()


def current_device() -> int:
    return simulator.core.current_device()


def set_device(device: Any) -> None:
    simulator.core.set_device(index_of(device))


class device:  # noqa: N801 - the real name
    """Makes a device the current one for a while."""

    def __init__(self, device: Any) -> None:
        self._index = index_of(device)
        self._before = self._index

    def __enter__(self) -> None:
        self._before = current_device()
        set_device(self._index)

    def __exit__(self, *_: object) -> None:
        set_device(self._before)


def get_device_name(device: Any = None) -> str:
    return get_device_properties(device).name


def get_device_properties(device: Any = None) -> Any:
    index = index_of(device)
    if index >= device_count():
        raise AssertionError(f"Invalid device id {index}")
    return SimpleNamespace(name=simulator.soc_name(), total_memory=simulator.core.memory(index)["total"])


def synchronize(device: Any = None) -> None:
    simulator.core.synchronize(index_of(device), "device")


def is_bf16_supported(including_emulation: bool = False) -> bool:  # noqa: ARG001, FBT001, FBT002 - the real signature
    return bool(simulator.limits()["bfloat16"])


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16] if is_bf16_supported() else [torch.float16]


def manual_seed(seed: int) -> None:
    torch.random.default_generator.manual_seed(seed)


manual_seed_all = manual_seed
