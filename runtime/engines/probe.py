"""What an engine tells of its device: what it is, which settings are in force, memory, and times by its own clock."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeAlias

from runtime.memory import available_memory

# A point in the device's stream of work: an event, or seconds where there is no stream.
Mark: TypeAlias = Any


@dataclass(frozen=True)
class DeviceFacts:
    """What the graphs run on.

    `simulated` says that a stand-in for the device was loaded. `flags` are the settings in force that change numbers
    or speed, `versions` those of what was loaded (torch, torch_npu, cann, soc).
    """

    simulated: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def is_simulated(versions: Mapping[str, str]) -> bool:
    """Return whether one of the versions is that of a stand-in for a device: they have the word in them."""
    return any("simulated" in version for version in versions.values())


@dataclass(frozen=True)
class DeviceMemory:
    """Device memory in bytes: held by tensors, held by the allocator, and the most that tensors ever held."""

    allocated: int
    reserved: int
    peak: int


@dataclass
class Work:
    """What was asked of a device: `calls` of graphs and what belongs to them.

    `operators` are those that the graphs list, views left out, and those that put a single number on the device.
    `launches` are what the host starts: each operator, or one replay for all of a captured graph's, and each copy on
    the device. `copies` go between host and device; `syncs` are the times that the host waits.
    """

    calls: int = 0
    operators: int = 0
    launches: int = 0
    copies: int = 0
    syncs: int = 0

    def add(self, other: Work) -> None:
        """Add what another one counted."""
        for count in fields(self):
            setattr(self, count.name, getattr(self, count.name) + getattr(other, count.name))

    def since(self, before: Work) -> Work:
        """Return what came after `before` was counted."""
        return Work(*(getattr(self, count.name) - getattr(before, count.name) for count in fields(self)))


class Probe(Protocol):
    """Facts, memory and times of an engine's device."""

    @property
    def facts(self) -> DeviceFacts:
        """What the graphs run on."""

    def memory(self) -> DeviceMemory | None:
        """Return what is held on the device now; None where its memory is the host's."""

    def free_memory(self) -> int | None:
        """Return about how many bytes more the device has for this process; None where nobody tells."""

    def shapes(self) -> dict[str, int]:
        """Return by graph how many different sets of input shapes it was called with."""

    def operators(self) -> int:
        """Return how many operators all work so far was made of, as the graphs list them; views are none."""

    def put_waits(self) -> int:
        """Return for how many of the arrays put so far the host had to wait until the device was idle.

        Where a graph runs on the host, what it takes from the device and gives back counts too.
        """

    def work(self) -> dict[str, Work]:
        """Return what was asked of the device so far, by graph.

        What is put counts to the graph that is called next, all else to the one that was called last.
        """

    def mark(self) -> Mark:
        """Return a mark behind the work that was given to the device so far; does not wait."""

    def seconds(self, start: Mark, end: Mark) -> float:
        """Return the seconds that the device took between two marks, after waiting for the second."""


class HostProbe:
    """For an engine that runs on the host and returns when it has finished."""

    facts = DeviceFacts()

    def memory(self) -> None:
        """Return None."""

    def free_memory(self) -> int | None:
        """Return what programs on the host may take now."""
        return available_memory()

    def shapes(self) -> dict[str, int]:
        """Return nothing: sessions are bound to one shape."""
        return {}

    def operators(self) -> int:
        """Return 0: none runs on a device."""
        return 0

    def put_waits(self) -> int:
        """Return 0: there is nothing to wait for."""
        return 0

    def work(self) -> dict[str, Work]:
        """Return nothing: no device works beside the host."""
        return {}

    def mark(self) -> float:
        """Return the time."""
        return time.perf_counter()

    def seconds(self, start: Mark, end: Mark) -> float:
        """Return the seconds between two times."""
        return float(end - start)
