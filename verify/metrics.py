"""Distances between arrays, distributions and texts. Nothing here runs a graph or knows a limit."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from runtime.engines.base import Array
from runtime.manifest import Dtype
from verify.results import Difference
from verify.timings import Statistics

Doubles = NDArray[np.float64]

# Largest finite magnitude. bfloat16 reaches the host as float32; its own largest value is (2 - 2**-7) * 2**127.
LARGEST: dict[Dtype, float] = {
    "float32": float(np.finfo(np.float32).max),
    "float16": float(np.finfo(np.float16).max),
    "bfloat16": (2.0 - 2.0**-7) * 2.0**127,
    "int64": float(np.iinfo(np.int64).max),
}


def compare(actual: Array, golden: Array, dtype: Dtype) -> Difference:
    """Return how far `actual` is from `golden`.

    Parameters
    ----------
    actual, golden : array, same shape
        Computed in float64 whatever their dtypes.
    dtype : str
        What the graph computed `actual` in; sets the limit for `at_limit`.

    Notes
    -----
    An output that is not finite everywhere is infinitely far away, as is any difference from an all-zero golden.

    """
    found = np.asarray(actual, dtype=np.float64)
    reference = np.asarray(golden, dtype=np.float64)
    error = np.abs(found - reference)
    magnitude = np.abs(reference)
    if not np.isfinite(error).all():
        return unlike(found, dtype)
    largest = float(magnitude.max(initial=0.0))
    nonzero = magnitude > 0
    raw = error[nonzero] / magnitude[nonzero]
    norms = float(np.linalg.norm(error)), float(np.linalg.norm(reference))
    floored = float(np.mean(error / np.maximum(magnitude, 0.01 * largest))) if largest else _over(error.sum(), 0.0)
    return Difference(
        relative_l2=_over(*norms),
        max_relative=_over(float(error.max(initial=0.0)), largest),
        mean_relative=floored,
        raw_mean_relative=float(raw.mean()) if raw.size else 0.0,
        raw_max_relative=float(raw.max(initial=0.0)),
        max_abs=float(error.max(initial=0.0)),
        elements=found.size,
        zero_reference=int(found.size - nonzero.sum()),
        non_finite=0,
        at_limit=_at_limit(found, dtype),
    )


def unlike(actual: Array, dtype: Dtype) -> Difference:
    """Return the difference of an array that cannot be compared by value: every error is infinite."""
    found = np.asarray(actual, dtype=np.float64)
    return Difference(
        relative_l2=math.inf,
        max_relative=math.inf,
        mean_relative=math.inf,
        raw_mean_relative=math.inf,
        raw_max_relative=math.inf,
        max_abs=math.inf,
        elements=found.size,
        zero_reference=0,
        non_finite=int(found.size - np.isfinite(found).sum()),
        at_limit=_at_limit(found, dtype),
    )


def _over(value: float, reference: float) -> float:
    if reference == 0:
        return 0.0 if value == 0 else math.inf
    return value / reference


def _at_limit(found: Doubles, dtype: Dtype) -> int:
    """Count values at the dtype's largest magnitude: where some devices put what should be infinite."""
    return int(np.count_nonzero(np.isfinite(found) & (np.abs(found) >= LARGEST[dtype])))


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


def error_rates(reference: str, text: str) -> tuple[float, float] | None:
    """Return word and character error rate of `text`, or None where the reference has no words.

    Both texts are lower-cased and lose punctuation and repeated spaces first.
    """
    import jiwer

    clean = jiwer.Compose([jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.RemoveMultipleSpaces(), jiwer.Strip()])
    said, heard = clean(reference), clean(text)
    if not said:
        return None
    return float(jiwer.wer(said, heard)), float(jiwer.cer(said, heard))


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
