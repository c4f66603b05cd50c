"""Negative controls: an engine with a known bug, made by a wrapper around a sound one. Verify must reject it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from runtime.artifact import Artifact
from runtime.engines.base import Array, BoundGraph, Engine, Floats, Value
from runtime.engines.profile import Profile
from runtime.manifest import Dtype, TensorSpec

Arrays: TypeAlias = dict[str, Array]
RunGraph: TypeAlias = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Fault:
    """A bug in every graph whose name starts with `graph`, or with one of them.

    `call` stands in for the graph: it gets the sound graph and the inputs, both in numpy on the host. Verify must fail
    by a gate whose name starts with `gate`.
    """

    name: str
    graph: str | tuple[str, ...]
    gate: str
    call: Callable[[RunGraph, Arrays], Arrays]


class FaultyEngine:
    """An engine that behaves as `engine` does but for one fault."""

    def __init__(self, engine: Engine, artifact: Artifact, fault: Fault) -> None:
        self.name = f"{engine.name} with {fault.name}"
        self.device = engine.device
        self.probe = engine.probe
        self._engine = engine
        self._graphs = artifact.content.graphs
        self._fault = fault

    def open(self, graph: str) -> None:
        """As the sound engine."""
        self._engine.open(graph)

    def put(self, array: Array, dtype: Dtype) -> Value:
        """As the sound engine."""
        return self._engine.put(array, dtype)

    def get(self, value: Value) -> Array:
        """As the sound engine."""
        return self._engine.get(value)

    def zeros(self, spec: TensorSpec) -> Value:
        """As the sound engine."""
        return self._engine.zeros(spec)

    def write_rows(self, cache: Value, rows: Value, at: int, count: int, start: int = 0) -> None:
        """As the sound engine."""
        self._engine.write_rows(cache, rows, at, count, start)

    def synchronize(self) -> None:
        """As the sound engine."""
        self._engine.synchronize()

    def take_profile(self) -> Profile:
        """As the sound engine."""
        return self._engine.take_profile()

    def close(self) -> None:
        """As the sound engine."""
        self._engine.close()

    def bind(self, graph: str, fixed: Mapping[str, Value]) -> BoundGraph:
        """Bind without the sound engine's binding: the fault may change fixed values too."""
        return lambda inputs: self.run(graph, {**fixed, **inputs})

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Call the graph, by way of the fault where it has one."""
        if not graph.startswith(self._fault.graph):
            return self._engine.run(graph, inputs)
        spec = self._graphs[graph]
        dtypes = {tensor.name: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}

        def sound(arrays: Arrays) -> Arrays:
            return self._on_host(self._engine.run(graph, self._on_device(arrays, dtypes)))

        return self._on_device(self._fault.call(sound, self._on_host(inputs)), dtypes)

    def _on_host(self, values: Mapping[str, Value]) -> Arrays:
        # A copy, because a fault writes into it and the engine may lend its own memory.
        return {name: self._engine.get(value).copy() for name, value in values.items()}

    def _on_device(self, arrays: Arrays, dtypes: dict[str, Dtype]) -> dict[str, Value]:
        return {name: self._engine.put(array, dtypes[name]) for name, array in arrays.items()}


def hf32(array: Array) -> Floats:
    """Return f32 `array` as Ascend's HF32 keeps it: 10 bits of the mantissa, as in TF32, half up in magnitude."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded: Floats = ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)
    return rounded


def scaled(run: RunGraph, inputs: Arrays, output: str, by: float) -> Arrays:
    """Return the graph's outputs, one of them `by` times as large."""
    outputs = run(inputs)
    return {**outputs, output: outputs[output] * np.asarray(by, outputs[output].dtype)}


def with_nan(run: RunGraph, inputs: Arrays, output: str) -> Arrays:
    """Return the graph's outputs, one of them with NaN in its first column."""
    outputs = run(inputs)
    outputs[output][..., 0] = np.nan
    return outputs


def off_by_one(run: RunGraph, inputs: Arrays) -> Arrays:
    """Return the graph's outputs, every token one id too high: one vocabulary against another."""
    outputs = run(inputs)
    return {**outputs, "logits": np.roll(outputs["logits"], 1, axis=-1)}


def in_hf32(run: RunGraph, inputs: Arrays) -> Arrays:
    """Return what a graph computes in Ascend's HF32, which 910B convolutions use unless told not to."""
    return _rounded(run(_rounded(inputs)))


def _rounded(arrays: Arrays) -> Arrays:
    return {name: hf32(array) if np.issubdtype(array.dtype, np.floating) else array for name, array in arrays.items()}
