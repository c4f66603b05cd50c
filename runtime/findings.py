"""What doctor says of one thing that it looked at, and what a family takes of a device's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: a `problem` keeps artifacts from running, a `note` may surprise later."""

    level: Level
    about: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        """Return the finding as one line."""
        return f"{self.about}: {self.found}" + (f"; {self.advice}" if self.advice else "")


class WorkingMemory(Protocol):
    """What an artifact takes beside its weights: a dataclass of a family, whose fields are in doctor's JSON."""

    @property
    def least_bytes(self) -> int:
        """What the shortest recording takes."""

    def finding(self, weights_bytes: int, about: str, device: str, total: int | None) -> Finding:
        """Return what recordings take, and for how much the device has memory.

        Parameters
        ----------
        weights_bytes : int
            What the weights take of it.
        about : str
            The artifact's name.
        device : str
            The device's name.
        total : int or None
            The device's memory in bytes, None if not known.

        """


def binary_size(size: int) -> str:
    """Return a size in bytes as text, in the binary units in which devices are sold."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
