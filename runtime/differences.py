"""How far an output is from its golden output, and how far it may be. Nothing here runs a graph."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from runtime.engines.base import Array
from runtime.manifest import Content, Dtype, Graph, Tolerances

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

# Gate 1 for the fp32 graphs of an artifact of lower precision, whose manifest holds the limits of gate 2.
STRUCTURE = Tolerances(relative_l2=1e-4, max_relative=1e-4, mean_relative=None)


class Difference(BaseModel):
    """Distance of an output from its golden output; each value is the limit that would just have let it pass.

    relative_l2 = |d|_2 / |ref|_2; max_relative = max|d| / max|ref|; mean_relative = mean(|d| / max(|ref|, 0.01
    max|ref|)). The raw errors divide by |ref| itself; the `zero_reference` elements where that is 0 are left out of
    them. `non_finite` counts NaN and infinities, `at_limit` values at the largest magnitude of the dtype.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_inf_nan="strings", validate_by_name=True, serialize_by_alias=True
    )

    relative_l2: float
    max_relative: float
    mean_relative: float
    raw_mean_relative: float
    raw_max_relative: float
    max_abs: float
    elements: int
    zero_reference: int
    non_finite: int
    at_limit: int


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


def is_below_fp32(graph: Graph) -> bool:
    """Return whether a graph computes below fp32: one of its floating-point tensors is narrower."""
    return any(spec.dtype in ("float16", "bfloat16") for spec in (*graph.inputs, *graph.outputs))


def compare_output(actual: Array, golden: Array, dtype: Dtype) -> tuple[Difference, str | None]:
    """Return the distance of a graph's output from the golden one, and why they cannot be compared by value.

    Parameters
    ----------
    actual, golden : array
        What the engine returned, cut to what is kept, and what is stored.
    dtype : str
        The output's, as the manifest says.

    """
    if actual.shape != golden.shape:
        return unlike(actual, dtype), f"shape {list(actual.shape)}, golden {list(golden.shape)}"
    if actual.dtype.name != _ON_HOST[dtype]:
        return unlike(actual, dtype), f"dtype {actual.dtype.name}, manifest {dtype}"
    return compare(actual, golden, dtype), None


def tolerances_of(content: Content, graph: Graph) -> Tolerances:
    """Return the limits that hold for a graph's outputs: gate 1 for what computes in fp32, else the manifest's."""
    return content.tolerances if content.variant == "fp32" or is_below_fp32(graph) else STRUCTURE
