"""How far an output is from its golden output, and how far it may be. Nothing here runs a graph."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from runtime.engines.base import Array
from runtime.manifest import Dtype

Doubles = NDArray[np.float64]

# Largest finite magnitude. bfloat16 reaches the host as float32; its own largest value is (2 - 2**-7) * 2**127.
LARGEST: dict[Dtype, float] = {
    "float32": float(np.finfo(np.float32).max),
    "float16": float(np.finfo(np.float16).max),
    "bfloat16": (2.0 - 2.0**-7) * 2.0**127,
    "int64": float(np.iinfo(np.int64).max),
}

# What Engine.get returns for each dtype of a graph.
_ON_HOST: dict[Dtype, str] = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "float32",
    "int64": "int64",
}

# Shorter axes of time say nothing of an error's mean over it.
_FEW_ROWS = 8
# A quiet row's error counts as that of a row with this share of all rows' root mean square.
_QUIET = 0.1


class Difference(BaseModel):
    """Distance of an output from its golden output; each value is the limit that would just have let it pass.

    The first six are judged, of logits less their row's mean: relative_l2 = |d|_2 / |ref|_2; max_relative = max|d| /
    max|ref|; row_l2, the largest root mean square of a row's error over that of the row; bias, the norm of the error's
    mean over time (axis -2) over that of the rows' root mean square: rounding averages out, a wrong constant does not;
    slope = |d . ref| / |ref|^2, of logits over many rows: a gain; kl, the Kullback-Leibler divergence from the golden
    distribution, worst row, nats. None where one does not apply.

    The others are reported: mean_relative = mean(|d| / max(|ref|, 0.01 max|ref|)); cosine; the raw errors, which divide
    by |ref| itself and leave out the `zero_reference` elements where that is 0; max_abs and mean_abs of |d| (None in
    results that were written before it was measured). `non_finite` counts NaN and infinities, `at_limit` values at the
    largest magnitude of the dtype.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_inf_nan="strings", validate_by_name=True, serialize_by_alias=True
    )

    relative_l2: float
    max_relative: float
    row_l2: float | None = None
    bias: float | None = None
    slope: float | None = None
    kl: float | None = None
    mean_relative: float
    cosine: float
    raw_mean_relative: float
    raw_max_relative: float
    max_abs: float
    mean_abs: float | None = None
    elements: int
    zero_reference: int
    non_finite: int
    at_limit: int


def compare(actual: Array, golden: Array, dtype: Dtype, *, logits: bool = False) -> Difference:
    """Return how far `actual` is from `golden`.

    Parameters
    ----------
    actual, golden : array, same shape
        Computed in float64 whatever their dtypes.
    dtype : str
        What the graph computed `actual` in; sets the limit for `at_limit`.
    logits : bool
        Whether a softmax over the last axis follows.

    Notes
    -----
    An output that is not finite everywhere is infinitely far away, as is any difference from an all-zero golden.

    """
    found = np.asarray(actual, dtype=np.float64)
    reference = np.asarray(golden, dtype=np.float64)
    error = np.abs(found - reference)
    magnitude = np.abs(reference)
    if not np.isfinite(error).all():
        return unlike(found, dtype, logits=logits)
    largest = float(magnitude.max(initial=0.0))
    nonzero = magnitude > 0
    raw = error[nonzero] / magnitude[nonzero]
    norms = float(np.linalg.norm(found)) * float(np.linalg.norm(reference))
    floored = float(np.mean(error / np.maximum(magnitude, 0.01 * largest))) if largest else _over(error.sum(), 0.0)
    return Difference(
        **_judged(found, reference, logits=logits),
        mean_relative=floored,
        cosine=float(np.vdot(found, reference)) / norms if norms else float(not error.any()),
        raw_mean_relative=float(raw.mean()) if raw.size else 0.0,
        raw_max_relative=float(raw.max(initial=0.0)),
        max_abs=float(error.max(initial=0.0)),
        mean_abs=float(error.mean()) if error.size else 0.0,
        elements=found.size,
        zero_reference=int(found.size - nonzero.sum()),
        non_finite=0,
        at_limit=_at_limit(found, dtype),
    )


def _judged(found: Doubles, reference: Doubles, *, logits: bool) -> dict[str, float]:
    """Return the metrics that are judged and apply."""
    values: dict[str, float] = {}
    if logits:
        values["kl"] = float(kl_divergence(reference, found).max(initial=0.0))
        found = found - found.mean(axis=-1, keepdims=True)
        reference = reference - reference.mean(axis=-1, keepdims=True)
    error = found - reference
    values["relative_l2"] = _over(float(np.linalg.norm(error)), float(np.linalg.norm(reference)))
    values["max_relative"] = _over(float(np.abs(error).max(initial=0.0)), float(np.abs(reference).max(initial=0.0)))
    if reference.ndim < 2 or not reference.size:  # noqa: PLR2004 - no rows
        return values
    sizes, errors = np.sqrt((reference**2).mean(axis=-1)), np.sqrt((error**2).mean(axis=-1))
    least = 0.0 if logits else _QUIET * float(np.sqrt((reference**2).mean()))
    values["row_l2"] = max(map(_over, errors.ravel().tolist(), np.maximum(sizes, least).ravel().tolist()))
    if logits:
        error, reference = (array.reshape(-1, array.shape[-1]) for array in (error, reference))
    if (logits or reference.ndim > 2) and reference.shape[-2] > _FEW_ROWS:  # noqa: PLR2004 - batch and time
        scale = float(np.linalg.norm(np.sqrt((reference**2).mean(axis=-2))))
        values["bias"] = _over(float(np.linalg.norm(error.mean(axis=-2))), scale)
        if logits:
            values["slope"] = _over(abs(float(np.vdot(error, reference))), float(np.vdot(reference, reference)))
    return values


def log_softmax(logits: Array) -> Doubles:
    """Return natural log-probabilities in float64 over the last axis."""
    values = np.asarray(logits, dtype=np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def kl_divergence(golden: Array, actual: Array) -> Doubles:
    """Return KL(golden || actual) in nats per row of two finite logit arrays [..., V]."""
    p, q = log_softmax(golden), log_softmax(actual)
    divergence: Doubles = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
    return divergence


def unlike(actual: Array, dtype: Dtype, *, logits: bool = False) -> Difference:
    """Return the difference of an array that cannot be compared by value: every error is infinite."""
    found = np.asarray(actual, dtype=np.float64)
    return Difference(
        relative_l2=math.inf,
        max_relative=math.inf,
        kl=math.inf if logits else None,
        mean_relative=math.inf,
        cosine=0.0,
        raw_mean_relative=math.inf,
        raw_max_relative=math.inf,
        max_abs=math.inf,
        mean_abs=math.inf,
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


def compare_output(
    actual: Array, golden: Array, dtype: Dtype, *, logits: bool = False
) -> tuple[Difference, str | None]:
    """Return the distance of a graph's output from the golden one, and why they cannot be compared by value.

    Parameters
    ----------
    actual, golden : array
        What the engine returned, cut to what is kept, and what is stored.
    dtype : str
        The output's, as the manifest says.
    logits : bool
        Whether a softmax over the last axis follows.

    """
    if actual.shape != golden.shape:
        return unlike(actual, dtype, logits=logits), f"shape {list(actual.shape)}, golden {list(golden.shape)}"
    if actual.dtype.name != _ON_HOST[dtype]:
        return unlike(actual, dtype, logits=logits), f"dtype {actual.dtype.name}, manifest {dtype}"
    return compare(actual, golden, dtype, logits=logits), None
