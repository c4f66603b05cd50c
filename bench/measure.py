"""Interleaved timing of several contestants on the same work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Clock = Literal["wall_s", "cpu_s"]
CLOCKS: tuple[Clock, ...] = ("wall_s", "cpu_s")


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, and of the process's CPU time over all threads."""

    wall_s: float
    cpu_s: float

    def since(self, earlier: Cost) -> Cost:
        """Return what was spent after `earlier`."""
        return Cost(self.wall_s - earlier.wall_s, self.cpu_s - earlier.cpu_s)


# The parts of one run of one contestant, in their order.
Run: TypeAlias = dict[str, Cost]


class Laps:
    """Costs of the parts of a run, one after the other."""

    def __init__(self) -> None:
        self.run: Run = {}
        self._last = _now()

    def end(self, part: str) -> None:
        """Note what it cost since the last part's end, or since the start, as `part`."""
        now = _now()
        self.run[part] = now.since(self._last)
        self._last = _now()


def _now() -> Cost:
    return Cost(time.perf_counter(), time.process_time())


def drawn_orders(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """Yield an order for each round, drawn by a fixed seed: the next one pays for the memory that one gives back."""
    orders = np.random.default_rng(0)
    for _ in range(rounds):
        yield orders.permutation(list(names)).tolist()


def measure(contestants: Mapping[str, Callable[[], Run]], runs: int) -> dict[str, list[Run]]:
    """Run all contestants once a round, `runs` rounds, in this process: what slows the machine for a while slows each.

    Warming up is the caller's: it compares what the contestants compute, in a round that does not count.
    """
    timed = {name: list[Run]() for name in contestants}
    for order in drawn_orders(list(contestants), runs):
        for name in order:
            timed[name].append(contestants[name]())
    return timed


def medians(runs: Sequence[Run], clock: Clock) -> dict[str, float]:
    """Return the median seconds of each part, and of each run's sum as `total`."""
    seconds = [{part: float(getattr(cost, clock)) for part, cost in run.items()} for run in runs]
    for parts in seconds:
        parts["total"] = sum(parts.values())
    return {part: statistics.median(run[part] for run in seconds) for part in seconds[0]}
