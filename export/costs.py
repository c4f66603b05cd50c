"""Measures what the stages of an export cost."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.manifest import StageCost
from runtime.memory import release_memory

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class CostMeter:
    """Collects the cost of each stage in `stages`, and tells `progress` when one begins."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self.stages: list[StageCost] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the body; memory freed before is given back to the system first."""
        self._progress(name)
        release_memory()
        _reset_peak()
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.stages.append(
            StageCost(
                stage=name,
                cpu_s=round(time.process_time() - cpu, 3),
                wall_s=round(time.perf_counter() - wall, 3),
                peak_rss=peak_rss(),
            )
        )


def peak_rss() -> int:
    """Return the peak resident memory of this process in bytes, on Linux since the last stage began."""
    try:
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak() -> None:
    """Set the peak to what is resident now (proc(5), clear_refs); where that cannot be done peaks add up."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return
