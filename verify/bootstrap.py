"""How far a rate over a set of recordings depends on which recordings these are: percentile bootstrap.

Recordings, not words, are drawn anew: errors come in clusters, of a speaker or of a noisy room (Bisani and Ney,
"Bootstrap estimates for confidence intervals in ASR performance evaluation", 2004).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from verify.results import Result

REPLICATES = 2000
SEED = 0
LEVEL = 0.95
_LEAST = 2  # recordings: one alone says nothing about others

# A recording's part of a rate: what is counted, and of how many.
Part: TypeAlias = tuple[float, float]


class Estimate(Result):
    """A rate over all recordings together, and the interval that it lies in with 95 % confidence.

    `low` and `high` are None for a single recording.
    """

    value: float
    low: float | None
    high: float | None
    recordings: int


def estimate(parts: Sequence[Part]) -> Estimate | None:
    """Return the rate, the sum of what is counted over the sum of how many; None where there is nothing to count."""
    return _estimate(np.array([parts], np.float64).reshape(1, -1, 2))


def change(before: Sequence[Part], after: Sequence[Part]) -> Estimate | None:
    """Return by how much the rate grows, of the same recordings in the same order, which are drawn together."""
    return _estimate(np.array([before, after], np.float64).reshape(2, -1, 2))


def _estimate(parts: NDArray[np.float64]) -> Estimate | None:
    """Return the estimate for parts [1 or 2, n, 2]."""
    value = float(_rates(parts.sum(axis=1)[:, None])[0])
    if np.isnan(value):
        return None
    count = parts.shape[1]
    if count < _LEAST:
        return Estimate(value=value, low=None, high=None, recordings=count)
    rng = np.random.default_rng(SEED)
    sums = [parts[:, rng.integers(count, size=count)].sum(axis=1) for _ in range(REPLICATES)]
    found = _rates(np.stack(sums, axis=1))
    low, high = np.nanquantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=value, low=float(low), high=float(high), recordings=count)


def _rates(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rates [m], or their differences, of sums [1 or 2, m, 2]; NaN where there is nothing to count."""
    counted, of = sums[..., 0], sums[..., 1]
    rates = np.divide(counted, of, out=np.full_like(of, np.nan), where=of > 0)
    last: NDArray[np.float64] = rates[-1]
    return last - rates[0] if len(rates) > 1 else last
