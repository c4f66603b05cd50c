"""Margins between candidates, and statistics of times. Nothing here runs a graph or knows a limit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engines.base import Array
from verify.timings import Statistics

Doubles = NDArray[np.float64]


def top2_margin(logits: Array) -> Doubles:
    """Return the gap between the largest and the second largest value of each row of [n, V]."""
    top = np.partition(np.asarray(logits, dtype=np.float64), -2, axis=-1)[:, -2:]
    return np.abs(top[:, 1] - top[:, 0])


def statistics(seconds: list[float]) -> Statistics:
    """Return mean, spread and percentiles (linear interpolation between runs) of at least one time."""
    values = np.asarray(seconds, dtype=np.float64)
    p50, p90, p95, p99 = np.percentile(values, (50, 90, 95, 99))
    return Statistics(
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if values.size > 1 else 0.0,
        min=float(values.min()),
        p50=float(p50),
        p90=float(p90),
        p95=float(p95),
        p99=float(p99),
        max=float(values.max()),
    )
