"""Statistics of the caching allocator, in bytes."""

from __future__ import annotations

from typing import Any

from torch_npu import simulator
from torch_npu.npu.device import device_count, index_of


def memory_allocated(device: Any = None) -> int:
    return simulator.core.memory(index_of(device))["allocated"]


def max_memory_allocated(device: Any = None) -> int:
    return simulator.core.memory(index_of(device))["peak_allocated"]


def memory_reserved(device: Any = None) -> int:
    return simulator.core.memory(index_of(device))["reserved"]


def max_memory_reserved(device: Any = None) -> int:
    return simulator.core.memory(index_of(device))["peak_reserved"]


def memory_stats(device: Any = None) -> dict[str, int]:
    memory = simulator.core.memory(index_of(device))
    return {
        "allocated_bytes.all.current": memory["allocated"],
        "allocated_bytes.all.peak": memory["peak_allocated"],
        "reserved_bytes.all.current": memory["reserved"],
        "reserved_bytes.all.peak": memory["peak_reserved"],
    }


def mem_get_info(device: Any = None) -> tuple[int, int]:
    memory = simulator.core.memory(index_of(device))
    return memory["total"] - memory["reserved"], memory["total"]


def reset_peak_memory_stats(device: Any = None) -> None:
    simulator.core.reset_peaks(index_of(device))


def empty_cache() -> None:
    for index in range(device_count()):
        simulator.core.synchronize(index, "empty_cache")
    simulator.core.empty_cache()
