"""Reads an artifact's golden arrays, inputs of cases as the graph takes them and outputs as stored, and runs cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from runtime.artifact import GOLDEN_NAME, Artifact
from runtime.engines.base import Array, Engine, Value
from runtime.errors import DamagedArtifactError
from runtime.manifest import Case, Content, GoldenOutput, Graph, TensorSpec

_CACHE_AXIS = 2  # kv cache rows of [B, H, T, dh]
# A cache of open length is filled up to the next multiple, so that there is a row at least that must not be read.
_OPEN_ROWS = 64


class Golden:
    """The golden arrays of one artifact, read one at a time from its mapped file.

    Raises
    ------
    DamagedArtifactError
        The file is none of arrays.

    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.path = artifact.file(GOLDEN_NAME)
        try:
            self._file: Any = safe_open(str(self.path), framework="np")
        except SafetensorError as error:
            msg = f"{self.path}: expected a safetensors file ({error}); export the model again"
            raise DamagedArtifactError(msg) from error

    def array(self, key: str) -> Array:
        """Return the array stored under `key`.

        Raises
        ------
        DamagedArtifactError
            There is none.

        """
        try:
            array: Array = self._file.get_tensor(key)
        except SafetensorError as error:
            msg = f"{self.path}: expected an array {key!r}, found none; export the model again"
            raise DamagedArtifactError(msg) from error
        return array

    def inputs(self, case: Case) -> dict[str, Array]:
        """Return the inputs of a case by name, cache rows that the graph must not read filled with their garbage."""
        specs = {spec.name: spec for spec in self.artifact.content.graphs[case.graph].inputs}
        arrays = {}
        for name, stored in case.inputs.items():
            array = self.array(stored.key)
            arrays[name] = array if stored.fill is None else filled(array, specs[name], stored.fill)
        return arrays

    def output(self, stored: GoldenOutput) -> Array:
        """Return a golden output as stored; compare it with `kept` of the graph's output."""
        return self.array(stored.key)


def kept(output: Array, stored: GoldenOutput) -> Array:
    """Return the part of a graph's output that the golden file keeps: every `stride`-th index of axis -2."""
    return output if stored.stride == 1 else output[..., :: stored.stride, :]


def filled_shape(stored: Sequence[int], spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape that an array of the golden file has once it is filled."""
    size, rows = spec.shape[_CACHE_AXIS], stored[_CACHE_AXIS]
    filled = rows + _OPEN_ROWS - rows % _OPEN_ROWS if isinstance(size, str) else size
    return (*stored[:_CACHE_AXIS], filled, *stored[_CACHE_AXIS + 1 :])


def filled(array: Array, spec: TensorSpec, fill: float) -> Array:
    """Return cache rows as long as a graph's input takes them, those beyond the stored ones filled with `fill`."""
    widths = [(0, size - stored) for size, stored in zip(filled_shape(array.shape, spec), array.shape, strict=True)]
    return np.pad(array, widths, constant_values=fill)


def run_case(engine: Engine, graph: Graph, golden: Golden, case: Case) -> dict[str, Array]:
    """Return the outputs of a case that have a golden counterpart, on the host."""
    outputs = engine.run(case.graph, _put(engine, graph, golden.inputs(case)))
    return {name: engine.get(outputs[name]) for name in case.outputs}


def handed_on(content: Content, case: Case) -> dict[str, tuple[Case, str]]:
    """Return the inputs of a case that a bundle does not carry: by name the case and output that they are."""
    makers = {
        key: (maker, name)
        for maker in content.cases
        for name, stored in maker.outputs.items()
        if (key := f"{maker.name}/{name}") != stored.key
    }
    return {name: makers[stored.key] for name, stored in case.inputs.items() if stored.key in makers}


def run_cases(engine: Engine, golden: Golden, cases: Sequence[Case]) -> Iterator[tuple[Case, dict[str, Array]]]:
    """Yield cases with their outputs that have a golden counterpart, on the host.

    What a case before them hands on is as the engine made it.

    Raises
    ------
    DamagedArtifactError
        An array is missing, or no case before it hands an input on.

    """
    content = golden.artifact.content
    made: dict[str, dict[str, Value]] = {}
    for case in cases:
        given = {}
        for name, (maker, output) in handed_on(content, case).items():
            if output not in made.get(maker.name, {}):
                msg = (
                    f"{golden.path}: expected the case {maker.name!r} before {case.name!r}, found it not; freeze again"
                )
                raise DamagedArtifactError(msg)
            given[name] = made[maker.name][output]
        carried = {name: stored for name, stored in case.inputs.items() if name not in given}
        arrays = golden.inputs(case.model_copy(update={"inputs": carried}))
        outputs = engine.run(case.graph, {**_put(engine, content.graphs[case.graph], arrays), **given})
        yield case, {name: engine.get(outputs[name]) for name in case.outputs}
        if any(stored.key != f"{case.name}/{name}" for name, stored in case.outputs.items()):
            made[case.name] = dict(outputs)


def _put(engine: Engine, graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Value]:
    dtypes = {spec.name: spec.dtype for spec in graph.inputs}
    return {name: engine.put(array, dtypes[name]) for name, array in inputs.items()}
