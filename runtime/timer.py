"""Wall seconds by stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Synchronized(Protocol):
    """Something that works ahead of the host: an engine."""

    def synchronize(self) -> None:
        """Wait until it has finished."""


class Timer:
    """Adds up wall seconds by stage, waiting for the device at the end of each."""

    def __init__(self, engine: Synchronized) -> None:
        self._engine = engine
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, stage: str, *, on_device: bool = True) -> Iterator[None]:
        """Add the time spent inside to `stage`; what the host does alone need not wait for the device."""
        start = time.perf_counter()
        yield
        if on_device:
            self._engine.synchronize()
        self._seconds[stage] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Return the seconds since the last call and begin anew."""
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds
