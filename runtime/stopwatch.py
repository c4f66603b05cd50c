"""Wall seconds by stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.engines.base import Engine


class Stopwatch:
    """Adds up wall seconds by stage, waiting for the device at the end of each."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to `stage`."""
        start = time.perf_counter()
        yield
        self._engine.synchronize()
        self._seconds[stage] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Return the seconds since the last call and begin anew."""
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds
