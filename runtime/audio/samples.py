"""Samples that are in memory already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.engines.base import Floats
from runtime.errors import InputError

MAX_CHANNELS = 1024


@dataclass(frozen=True)
class SamplesPart:
    """An array [n, channels] of numbers at `rate` Hz; integers are those of their type's whole range."""

    data: NDArray[Any]
    rate: int

    @property
    def frames(self) -> int:
        """Samples per channel."""
        return len(self.data)

    @property
    def floats(self) -> bool:
        """Whether the samples' range is for the writer to choose."""
        return self.data.dtype.kind == "f"

    def read(self, first: int, stop: int, block: int) -> Iterator[Floats]:
        """Yield f32 [n, channels] from one frame to another."""
        kind, bits = self.data.dtype.kind, 8 * self.data.dtype.itemsize
        for at in range(first, stop, block):
            samples = self.data[at : min(at + block, stop)]
            with np.errstate(over="ignore"):  # the largest doubles become infinite, and are refused as such
                if kind == "f":
                    yield samples.astype(np.float32)
                else:
                    middle = 2.0 ** (bits - 1)
                    yield ((samples.astype(np.float64) - (middle if kind == "u" else 0)) / middle).astype(np.float32)


def samples_part(data: object, rate: int | None) -> SamplesPart:
    """Return an array as a recording's samples; the array is not copied.

    Raises
    ------
    InputError
        No rate, another shape than [n] or [n, channels], or numbers that are no samples.

    """
    if rate is None or not isinstance(rate, (int, np.integer)):
        raise InputError(f"rate: expected the samples per second of an array, found {rate!r}; give rate=16000 or so")
    array = np.asarray(data)
    if array.ndim not in {1, 2} or array.size == 0:
        raise InputError(f"<array>: expected samples of shape [n] or [n, channels], found {list(array.shape)}")
    if array.dtype.kind not in "fiu" or array.dtype in {np.dtype(np.int64), np.dtype(np.uint64)}:
        raise InputError(
            f"<array>: expected samples of a floating type or of 8 to 32 bits, found {array.dtype}; which value is "
            "full scale? Divide by it, or convert with .astype(numpy.int16)"
        )
    array = array.reshape(len(array), -1)
    if array.shape[1] > min(MAX_CHANNELS, max(2, len(array))):
        raise InputError(f"<array>: expected [n, channels], found {list(array.shape)}; transpose it")
    return SamplesPart(array, int(rate))
