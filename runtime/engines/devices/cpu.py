"""torch on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from runtime.engines.base import EngineSettings
from runtime.engines.probe import DeviceFacts, Mark
from runtime.manifest import Dtype
from runtime.memory import available_memory


class CpuDevice:
    """The host: work ends before the call that starts it returns, and memory is the host's.

    Parameters
    ----------
    name : str
        `cpu`.
    settings : EngineSettings
        Deterministic or not; the rest does not apply.

    """

    def __init__(self, name: str, settings: EngineSettings) -> None:
        self.name = name
        self.put_waits = self.put_operators = 0
        self.lacks: frozenset[Dtype] = frozenset()
        if settings.deterministic:
            torch.use_deterministic_algorithms(mode=True)
        self.facts = DeviceFacts(flags={"deterministic": str(settings.deterministic).lower()})

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor."""
        return tensor

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor."""
        return tensor

    def synchronize(self) -> None:
        """Return at once."""

    def memory(self) -> None:
        """Return None."""

    def free_memory(self) -> int | None:
        """Return what programs on the host may take now."""
        return available_memory()

    def release(self) -> None:
        """Do nothing."""

    def mark(self) -> Mark:
        """Return the time."""
        return time.perf_counter()

    def seconds(self, start: Mark, end: Mark) -> float:
        """Return the seconds between two times."""
        return float(end - start)

    def capture(self, call: Callable[[], None]) -> None:
        """Return None."""
