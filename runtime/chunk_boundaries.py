"""Chunk boundaries of long recordings: in the middle of the quietest late pause."""

from __future__ import annotations

import numpy as np

from runtime.engines.base import Floats

PAUSE_S = 0.32  # the stretch around a boundary that is to be quiet: longer than the closure of a consonant


def quietest_boundary(chunk: Floats, reach: int, pause: int) -> int:
    """Return how many frames of a chunk to keep: up to the middle of its quietest late pause.

    Parameters
    ----------
    chunk : Floats
        f32 [n, samples of a frame].
    reach : int
        The boundary lies in so many frames before the chunk's end, but in its second half.
    pause : int
        Frames around the boundary that are to be quiet together.

    """
    n = len(chunk)
    earliest = max(n - reach, n // 2, 1)
    if n - pause <= earliest:
        return n
    power = np.square(chunk, dtype=np.float64).sum(axis=1)
    sums = np.convolve(power, np.ones(pause), "valid")[
        earliest - pause // 2 :
    ]  # of `pause` frames around each boundary
    quietest = np.flatnonzero(sums == sums.min())  # many, in digital silence
    return earliest + int(quietest[len(quietest) // 2])
