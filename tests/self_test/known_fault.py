"""What a fault of the catalogue says of itself, and the ways to put one in."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from safetensors import safe_open

from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.engines.onnxruntime import OnnxRuntimeEngine
from runtime.manifest import Content, Variant
from self_test.subject import Run, Subject
from verify.accuracy import judge_engine
from verify.faults import Arrays, Fault, FaultyEngine, RunGraph
from verify.results import EngineAccuracy

Kind = Literal["numeric", "structural", "runtime"]
NPU = "npu:0"
# Of a fault whose strength can be chosen; 1 for the others.
Strength: TypeAlias = float
PutIn: TypeAlias = Callable[[Subject, Strength], AbstractContextManager[Engine]]
Select: TypeAlias = Callable[[Content], set[str]]


@dataclass(frozen=True)
class Reference:
    """A strength at which something caught the fault, and which share of its limit it had there."""

    strength: Strength
    share: float

    @property
    def first(self) -> Strength:
        """The strength that would have had all of the limit: errors of weak faults grow as their strength does."""
        return self.strength / self.share


@dataclass(frozen=True)
class Scale:
    """Strengths of a fault: where the search for the weakest that is caught begins, and how fine it is.

    `before`: how the verdict of relative errors and raw logits caught it, of which limits were to lose no more than a
    factor of two; `prototype`: how the prototype of today's rule did. Both from ../shared/prototypes/verdict.
    """

    start: Strength
    finest: float = 1.2
    before: Reference | None = None
    prototype: Reference | None = None


@dataclass(frozen=True)
class KnownFault:
    """A mistake that a port, a converter, a kernel or a runtime has made.

    `put_in` yields an engine with the fault, `judged_by` the names of the cases and recordings that have to show it.
    `where` says into what it is put. One on a `device` needs a process of its own, which has the simulated NPU.
    """

    name: str
    kind: Kind
    family: str
    model: str
    variant: Variant
    where: str
    put_in: PutIn
    judged_by: Select
    scale: Scale | None = None
    device: str = "cpu"

    @property
    def key(self) -> str:
        """Its name among all faults."""
        return f"{self.model} {self.variant}: {self.name}"

    def judge(self, subject: Subject, strength: Strength = 1.0) -> EngineAccuracy:
        """Return what verify says of the subject with the fault in it."""
        with self.put_in(subject, strength) as engine:
            return judge_engine(subject.artifact, engine, selected=self.judged_by(subject.artifact.content))[0]


class Edited:
    """One ONNX graph of an artifact and its weights, to be changed."""

    def __init__(self, artifact: Artifact, graph: str) -> None:
        self.name = artifact.content.graphs[graph].files["onnx"]
        self._weights = artifact.path / "weights.safetensors"
        self.model = onnx.load(str(artifact.path / self.name), load_external_data=False)

    def weight(self, name: str) -> NDArray[Any]:
        tensor = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        with safe_open(self._weights, framework="numpy") as stored:
            found: NDArray[Any] = stored.get_tensor(name)
        return found

    def change(self, name: str, edit: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
        tensor = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        old = self.weight(name)
        changed = edit(old.astype(np.float64)).astype(old.dtype)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), name))

    def constant(self, array: NDArray[np.generic]) -> str:
        name = f"edited_{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def operator(self, kind: str, inputs: list[str], before: onnx.NodeProto, **attributes: Any) -> str:
        """Put an operator in front of a node; return the name of its output."""
        nodes = self.model.graph.node
        output = f"edited_{len(nodes)}"
        place = next(i for i, node in enumerate(nodes) if node.output == before.output)
        nodes.insert(place, helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def behind_output(self, name: str, kind: str, array: NDArray[np.generic], **attributes: Any) -> None:
        """Put an operator with a constant between an output of the graph and the node that makes it."""
        other = self.constant(array)
        for node in self.model.graph.node:
            node.output[:] = [f"{name}_edited" if made == name else made for made in node.output]
            node.input[:] = [f"{name}_edited" if read == name else read for read in node.input]
        node = helper.make_node(kind, [f"{name}_edited", other], [name], name=f"edited {name}", **attributes)
        self.model.graph.node.append(node)

    def before_inputs(self, kind: str, prefix: str, array: NDArray[np.generic]) -> None:
        """Put an operator with a constant between every input whose name begins with `prefix` and its readers."""
        other = self.constant(array)
        for name in [value.name for value in self.model.graph.input if value.name.startswith(prefix)]:
            for node in self.model.graph.node:
                node.input[:] = [f"{name}_edited" if read == name else read for read in node.input]
            self.model.graph.node.insert(0, helper.make_node(kind, [name, other], [f"{name}_edited"]))


Edit: TypeAlias = Callable[[Edited, Strength], None]
# Graphs by their names' first letters: "prefill" is prefill_4, prefill_32 and so on.
Graphs: TypeAlias = tuple[str, ...]


def graphs_of(content: Content, prefixes: Graphs) -> list[str]:
    return [name for name in content.graphs if name.startswith(prefixes)]


def in_graphs(prefixes: Graphs, edit: Edit) -> PutIn:
    """Return what edits the files of graphs; weights beside them stay as they are."""

    @contextmanager
    def put_in(subject: Subject, strength: Strength) -> Iterator[Engine]:
        artifact, folder = subject.artifact, subject.scratch
        assert folder is not None
        _copy_once(artifact, folder)
        graphs = graphs_of(artifact.content, prefixes)
        assert graphs
        for graph in graphs:
            edited = Edited(artifact, graph)
            edit(edited, strength)
            onnx.save(edited.model, str(folder / edited.name))
        # Not opened anew, which refuses a file that was changed.
        engine = OnnxRuntimeEngine(Artifact(folder, artifact.manifest), threads=1)
        try:
            yield engine
        finally:
            engine.close()
            for graph in graphs:
                name = artifact.content.graphs[graph].files["onnx"]
                shutil.copyfile(artifact.path / name, folder / name)

    return put_in


def _copy_once(artifact: Artifact, folder: Path) -> None:
    for name in artifact.content.files:
        if not (folder / name).exists() and name.endswith((".onnx", "weights.safetensors")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, folder / name)


def cases_of(*prefixes: str, decisions: bool = False) -> Select:
    """Return what selects the cases of graphs, with the teacher-forced runs too."""

    def select(content: Content) -> set[str]:
        selected = {case.name for case in content.cases if case.graph.startswith(prefixes)}
        return selected | ({run.name for run in content.teacher_forced} if decisions else set())

    return select


def recordings(ending: str = "") -> Select:
    """Return what selects the recordings whose names end so."""
    return lambda content: {one.name for one in content.recordings if one.name.endswith(ending)}


def named(*names: str) -> Select:
    return lambda _: set(names)


def everything(content: Content) -> set[str]:
    """Select all that verify runs."""
    return {one.name for one in (*content.cases, *content.teacher_forced, *content.recordings)}


Patch: TypeAlias = Callable[[pytest.MonkeyPatch], None]


def wrapped(owner: object, name: str, make: Callable[[Any], Callable[..., Any]]) -> Patch:
    """Return what puts `make(original)` in place of a function."""
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def in_runtime(install: Patch) -> PutIn:
    """Return what patches the runtime's modules, around an engine that is sound."""

    @contextmanager
    def put_in(subject: Subject, _: Strength) -> Iterator[Engine]:
        with pytest.MonkeyPatch.context() as patch:
            install(patch)
            yield subject.engine

    return put_in


def in_modules(graph: str, inject: Callable[[Subject, pytest.MonkeyPatch], None]) -> PutIn:
    """Return what puts a fault into export's own modules, which then run eagerly in place of a graph."""

    @contextmanager
    def put_in(subject: Subject, _: Strength) -> Iterator[Engine]:
        with pytest.MonkeyPatch.context() as patch:
            inject(subject, patch)
            fault = Fault(inject.__name__, graph, "", subject.eager(graph))
            yield FaultyEngine(subject.engine, subject.artifact, fault)

    return put_in


def in_calls(graph: str | tuple[str, ...], run: Run) -> PutIn:
    """Return what stands between the runtime and graphs."""

    @contextmanager
    def put_in(subject: Subject, _: Strength) -> Iterator[Engine]:
        yield FaultyEngine(subject.engine, subject.artifact, Fault("", graph, "", run))

    return put_in


def now_and_then(graph: str, every: int) -> PutIn:
    """Return what makes one of so many calls of a graph wrong: its outputs are one per cent too large."""

    @contextmanager
    def put_in(subject: Subject, _: Strength) -> Iterator[Engine]:
        calls = itertools.count(1)

        def run(sound: RunGraph, inputs: Arrays) -> Arrays:
            outputs, by = sound(inputs), 1.01 if next(calls) % every == 0 else 1.0
            return {name: (by * array).astype(array.dtype) for name, array in outputs.items()}

        yield FaultyEngine(subject.engine, subject.artifact, Fault("", graph, "", run))
        assert next(calls) > every, f"{graph} was called less than {every} times"

    return put_in
