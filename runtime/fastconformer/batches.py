"""Which recordings go through the graphs together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

_Key = TypeVar("_Key", bound=Hashable)
# What is padded at most, as a multiple of what is there.
_PADDED = 1.5


def batches(lengths: Mapping[_Key, int], memory: Callable[[int], int], most: int) -> list[list[_Key]]:
    """Return batches of recordings, shortest first, each padded to its longest.

    A batch has at most 1.5 times the frames of its recordings, padding included, and takes at most `most` bytes; a
    recording that takes more goes alone.

    Parameters
    ----------
    lengths : mapping of int
        Frames of each recording, 1 at least.
    memory : callable
        What the encoder takes for one recording of so many frames, in bytes.
    most : int
        Bytes.

    """
    made: list[list[_Key]] = []
    total = 0
    for key in sorted(lengths, key=lambda key: lengths[key]):
        length = lengths[key]
        count = len(made[-1]) + 1 if made else 0
        if count and count * length <= _PADDED * (total + length) and count * memory(length) <= most:
            made[-1].append(key)
            total += length
        else:
            made.append([key])
            total = length
    return made
