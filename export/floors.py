"""Noise floors: how far correct implementations other than the artifact are from its golden outputs.

Limits are founded on them (`runtime.limits`), so that a network which amplifies rounding is not taken for a fault. They
are the network's modules in float64, and the source implementation in the artifact's precision, in this process and in
one that is held to other instructions of the processor: kernels of one kind of processor agree better with each other
than with those of the next. The modules in the artifact's own precision are none: TorchScript runs the same kernels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import starmap
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from export.golden import Golden
from export.graphs import TORCH_DTYPES, GraphDefinition
from export.parity import SourceModel, SpeechSource
from runtime.differences import compare
from runtime.engines.base import Array, Floats
from runtime.golden import filled, kept
from runtime.limits import forced_pool
from runtime.manifest import Case, Graph, HeadDecisions, Metric, Rule, Tolerances, Variant

# What is allowed beyond the largest of the floors: a constant where a network does not amplify rounding, and k, for
# kernels that differ more from golden than those that were measured. Their origin: docs/verdict.md.
RULES: dict[Variant, dict[Metric, Rule]] = {
    "fp32": {
        "relative_l2": Rule(constant=2e-5, k=3),
        "max_relative": Rule(constant=1e-4, k=3),
        "kl": Rule(constant=1e-8, k=9),
    },
    "fp16": {
        "relative_l2": Rule(constant=4e-3, k=4),
        "max_relative": Rule(constant=4e-3, k=4, logits_only=True),
        "row_l2": Rule(constant=2e-2, k=5),
        "bias": Rule(constant=1e-3, k=3),
        "slope": Rule(constant=3e-4, k=3),
        "kl": Rule(constant=2e-4, k=16),
    },
    "bf16": {
        "relative_l2": Rule(constant=3e-2, k=4),
        "max_relative": Rule(constant=3e-2, k=4, logits_only=True),
        "row_l2": Rule(constant=1e-1, k=5),
        "bias": Rule(constant=1e-2, k=3),
        "slope": Rule(constant=3e-3, k=3),
        "kl": Rule(constant=1e-2, k=16),
    },
}
# Candidates beside the golden choice: those whose golden logit is at most this far below it.
_CANDIDATES = 10.0
_PERCENTILE = 95
_LAYER = re.compile(r"_\d+$")


def unmeasured(variant: Variant) -> Tolerances:
    """Return limits that are constants alone."""
    return Tolerances(rules=_rules(variant), floors={}, implementations=(), decisions={})


def _rules(variant: Variant) -> dict[Variant, dict[Metric, Rule]]:
    return {precision: RULES[precision] for precision in dict.fromkeys(("fp32", variant))}


def set_pools(golden: Golden, encoders: frozenset[str], logits: frozenset[str]) -> None:
    """Say of every golden output what it is compared with, and whether a softmax follows.

    Outputs of many rows have floors of their case, one for all layers; those of few rows share one over all cases of a
    graph, whatever its length; logits share one.
    """
    for place, case in enumerate(golden.cases):
        named = {
            name: stored.model_copy(
                update={"logits": name in logits, "pool": _pool(case, name, encoders=encoders, logits=logits)}
            )
            for name, stored in case.outputs.items()
        }
        golden.cases[place] = case.model_copy(update={"outputs": named})


def _pool(case: Case, output: str, *, encoders: frozenset[str], logits: frozenset[str]) -> str:
    if output in logits:
        return output
    kind = _LAYER.sub("", output)
    return f"{case.graph}/{case.name} {kind}" if case.graph in encoders else f"{_LAYER.sub('', case.graph)} {kind}"


@dataclass
class Measured:
    """What was measured so far: the largest distance by pool and metric, and decisions by head and implementation."""

    implementations: list[str] = field(default_factory=list)
    floors: dict[str, dict[Metric, float]] = field(default_factory=dict)
    pair_errors: dict[str, list[float]] = field(default_factory=dict)
    flips: dict[str, list[int]] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)

    def add(self, golden: Golden, case: Case, outputs: Mapping[str, Array]) -> None:
        """Add an implementation's outputs of a case.

        Where it chose otherwise, what follows from the choice is no measure of rounding.
        """
        pairs = {name: kept(outputs[name], stored) for name, stored in case.outputs.items()}
        expected = {name: golden.arrays[stored.key] for name, stored in case.outputs.items()}
        integers = [name for name, array in expected.items() if array.dtype.kind != "f"]
        if any(not np.array_equal(pairs[name], expected[name]) for name in integers):
            return
        for name, stored in case.outputs.items():
            if name not in integers:
                self._add(stored.pool, pairs[name], expected[name], logits=stored.logits)

    def add_forced(self, golden: Golden, source: SourceModel) -> None:
        """Add the decisions of a source along the teacher-forced runs."""
        pairs = []
        for run in golden.teacher_forced:
            assert isinstance(source, SpeechSource)
            expected, found = golden.arrays[run.logits], source.teacher_forced(golden, run)
            for head, columns in run.heads.items():
                ours, theirs = expected[:, slice(*columns)], found[:, slice(*columns)]
                self._add(forced_pool(run.heads, head), theirs, ours, logits=True)
                pairs.append((head, ours, theirs))
        self.add_decisions(pairs)

    def add_decisions(self, pairs: Sequence[tuple[str, Floats, Floats]]) -> None:
        """Add an implementation's decisions: of each run its head, and the logits [n, V] of golden and its own."""
        for head in dict.fromkeys(head for head, _, _ in pairs):
            own = [(ours, theirs) for name, ours, theirs in pairs if name == head]
            self.pair_errors.setdefault(head, []).extend(error for pair in own for error in pair_errors(*pair).tolist())
            flips = sum(int((ours.argmax(axis=-1) != theirs.argmax(axis=-1)).sum()) for ours, theirs in own)
            self.flips.setdefault(head, []).append(flips)
            self.positions[head] = sum(len(ours) for ours, _ in own)

    def _add(self, pool: str, found: Array, expected: Array, *, logits: bool) -> None:
        difference = compare(found, expected, "float32", logits=logits)
        worst = self.floors.setdefault(pool, {})
        for metric in RULES["fp16"]:
            value: float | None = getattr(difference, metric)
            if value is not None and math.isfinite(value):
                worst[metric] = max(worst.get(metric, 0.0), value)

    def include(self, other: Measured) -> None:
        """Add what was measured elsewhere."""
        self.implementations += other.implementations
        for pool, values in other.floors.items():
            worst = self.floors.setdefault(pool, {})
            for metric, value in values.items():
                worst[metric] = max(worst.get(metric, 0.0), value)
        for head, errors in other.pair_errors.items():
            self.pair_errors.setdefault(head, []).extend(errors)
            self.flips.setdefault(head, []).extend(other.flips[head])
            self.positions[head] = other.positions[head]

    def tolerances(self, variant: Variant) -> Tolerances:
        """Return the limits of an artifact."""
        decisions = {
            head: HeadDecisions(
                positions=self.positions[head],
                flips=max(self.flips[head]),
                pair_error=float(np.percentile(errors, _PERCENTILE)),
            )
            for head, errors in self.pair_errors.items()
        }
        return Tolerances(
            rules=_rules(variant),
            floors=self.floors,
            implementations=tuple(self.implementations),
            decisions=decisions,
        )


def pair_errors(golden: Floats, found: Floats) -> Floats:
    """Return per row of logits [n, V] the largest error of the gap between the golden choice and a candidate."""
    best = golden.argmax(axis=-1)[:, None]
    error = found.astype(np.float64) - golden
    gaps = np.abs(error - np.take_along_axis(error, best, axis=-1))
    near = golden >= np.take_along_axis(golden, best, axis=-1) - _CANDIDATES
    errors: Floats = np.where(near, gaps, 0.0).max(axis=-1)
    return errors


def add_source(
    measured: Measured,
    source: SourceModel,
    golden: Golden,
    graphs: Mapping[str, Graph],
    dtype: torch.dtype,
    *,
    fp32: bool,
) -> None:
    """Add what a source is off by: where graphs compute in fp32, if `fp32` asks for it, then cast to `dtype`.

    Where no decoder is teacher-forced, the logits of each frame decide.
    """
    below = {name for name, graph in graphs.items() if graph.is_below_fp32}
    first = [case for case in golden.cases if case.graph not in below and fp32]
    for case in first:
        measured.add(golden, case, source.run(case.graph, golden.inputs(case)))
    if below:
        source.cast(dtype)
    frames: list[tuple[str, Floats, Floats]] = []
    for case in golden.cases:
        if case.graph in below:
            outputs = source.run(case.graph, golden.inputs(case))
            measured.add(golden, case, outputs)
            if not golden.teacher_forced:
                frames += _frames(golden, case, outputs)
    if golden.teacher_forced:
        measured.add_forced(golden, source)
    else:
        measured.add_decisions(frames)


def _frames(golden: Golden, case: Case, outputs: Mapping[str, Array]) -> Iterator[tuple[str, Floats, Floats]]:
    """Yield the logits of the frames of a case that are kept; behind a recording's end the golden ones are zero."""
    for name, stored in case.outputs.items():
        if stored.logits:
            expected = golden.arrays[stored.key]
            live = expected.any(axis=-1)
            yield "tokens", expected[live], kept(outputs[name], stored)[live]


def add_float64(
    measured: Measured, golden: Golden, graphs: Mapping[str, Graph], definitions: Mapping[str, GraphDefinition]
) -> None:
    """Add what the network's modules give in float64, on one thread, of all graphs that compute in fp32."""
    measured.implementations.append("the network's modules in float64")
    with _one_thread(), torch.no_grad(), _Float64():
        for case in golden.cases:
            if not graphs[case.graph].is_below_fp32:
                measured.add(golden, case, _outputs(definitions[case.graph], golden, case))


def _outputs(definition: GraphDefinition, golden: Golden, case: Case) -> dict[str, Array]:
    def tensor(name: str, fill: float | None, key: str) -> torch.Tensor:
        spec = next(spec for spec in definition.inputs if spec.name == name)
        array = golden.arrays[key] if fill is None else filled(golden.arrays[key], spec, fill)
        dtype = TORCH_DTYPES[spec.dtype]
        return torch.from_numpy(np.ascontiguousarray(array)).to(torch.float64 if dtype.is_floating_point else dtype)

    stored = [(spec.name, case.inputs[spec.name].fill, case.inputs[spec.name].key) for spec in definition.inputs]
    results = definition.module(*starmap(tensor, stored))
    tensors: Sequence[torch.Tensor] = results if isinstance(results, tuple) else (results,)
    return {spec.name: result.numpy() for spec, result in zip(definition.outputs, tensors, strict=True)}


class _Float64(TorchFunctionMode):
    """Every function computes in float64; parameters are widened one call at a time, so that memory stays small."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "__get__":  # a property: a shape, a dtype
            return func(*args)
        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*tree_map(_wide, args), **tree_map(_wide, kwargs or {}))


def _wide(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
