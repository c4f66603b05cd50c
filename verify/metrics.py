"""Distances between distributions, and statistics of times. Nothing here runs a graph or knows a limit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engines.base import Array
from verify.timings import Statistics

Doubles = NDArray[np.float64]


def log_softmax(logits: Array) -> Doubles:
    """Return natural log-probabilities in float64 over the last axis."""
    values = np.asarray(logits, dtype=np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def kl_divergence(golden: Array, actual: Array) -> Doubles:
    """Return KL(golden || actual) in nats per row of two logit arrays [n, V]; infinite where `actual` is not finite."""
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(actual).all(axis=-1))
    p = log_softmax(golden)
    q = log_softmax(np.where(finite[:, None], actual, 0.0))
    divergence = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
    return np.where(finite, divergence, np.inf)


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
