"""An artifact whose graphs are stood in for by export's modules, run eagerly, so that bugs can be put into weights."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from export.graphs import TORCH_DTYPES, GraphDefinition
from runtime.artifact import Artifact, open_artifact
from runtime.engines import open_engine
from runtime.engines.base import Engine
from verify.accuracy import judge_engine
from verify.families import family_of
from verify.faults import Arrays, Fault, FaultyEngine, RunGraph
from verify.golden import select
from verify.results import EngineAccuracy, RecordingAccuracy

Run = Callable[[RunGraph, Arrays], Arrays]


@dataclass(frozen=True)
class Subject:
    """An artifact, an engine that runs it, and its modules on its weights."""

    artifact: Artifact
    engine: Engine
    graphs: dict[str, GraphDefinition]

    @property
    def errors(self) -> str:
        """The gates that errors of the graphs below float32 have to fail."""
        return "structure" if self.artifact.content.variant == "fp32" else "precision"

    def judged(self, fault: Fault, *names: str) -> EngineAccuracy:
        """Judge by the cases of the faulty graph, unless names are given."""
        selected = set(names) or {c.name for c in self.artifact.content.cases if c.graph == fault.graph}
        return judge_engine(self.artifact, FaultyEngine(self.engine, self.artifact, fault), selected=selected)[0]

    def eager(self, graph: str) -> Run:
        """Return a stand-in for the frozen graph: the module, run by torch."""
        definition = self.graphs[graph]

        def call(_: RunGraph, inputs: Arrays) -> Arrays:
            values = [torch.from_numpy(inputs[spec.name]).to(TORCH_DTYPES[spec.dtype]) for spec in definition.inputs]
            with torch.no_grad():
                outputs = definition.module(*values)
            tensors = outputs if isinstance(outputs, tuple) else (outputs,)
            return {
                spec.name: (tensor.float() if spec.dtype == "bfloat16" else tensor).numpy()
                for spec, tensor in zip(definition.outputs, tensors, strict=True)
            }

        return call


ENGINES = {"fp32": "onnxruntime", "fp16": "onnxruntime", "bf16": "torchscript"}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
VARIANTS = ["fp32", *(pytest.param(variant, marks=pytest.mark.slow) for variant in ("fp16", "bf16"))]


class OpenVariants(dict[str, tuple[Artifact, Engine]]):
    """A family's artifacts by variant, each opened when it is first asked for."""

    def __init__(self, family: str, request: pytest.FixtureRequest) -> None:
        self._family = family
        self._request = request

    def __missing__(self, variant: str) -> tuple[Artifact, Engine]:
        name = f"{self._family}_artifact" if variant == "fp32" else f"{self._family}_{variant}_artifact"
        artifact = open_artifact(self._request.getfixturevalue(name))
        self[variant] = artifact, open_engine(artifact, ENGINES[variant], threads=1)
        return self[variant]

    def close(self) -> None:
        for _, engine in self.values():
            engine.close()


def rolled(run: RunGraph, inputs: Arrays, name: str, by: int, axis: int) -> Arrays:
    """Run the graph and turn one of its outputs by so many places along an axis."""
    outputs = run(inputs)
    return {**outputs, name: np.roll(outputs[name], by, axis=axis)}


def not_finite(run: RunGraph, inputs: Arrays, name: str) -> Arrays:
    """Run the graph and make one of its outputs not a number."""
    outputs = run(inputs)
    return {**outputs, name: outputs[name] * np.float32("nan")}


def without_kernel(_run: RunGraph, _inputs: Arrays) -> Arrays:
    raise RuntimeError("no kernel\nfor it")


NO_KERNEL = "RuntimeError: no kernel for it"
# Of what is said: a family of speech has them all.
SPEECH_GATES = {"decisions.tokens", "decisions.kl", "task.text", "task.times", "task.tokens"}


def judged_with_controls(subject: Subject, gates: Collection[str] = SPEECH_GATES) -> EngineAccuracy:
    """Judge the sound graphs, which pass, with every bug that the family injects, each of which is caught."""
    selected = select(subject.artifact, None)
    accuracy, inference = judge_engine(subject.artifact, subject.engine, selected=selected, controls=True)
    assert accuracy.verdict == "pass", accuracy.reason
    assert {control.name: control.failed_gates for control in accuracy.controls if not control.caught} == {}
    injected = [fault.name for fault in family_of(subject.artifact).faults(subject.artifact)]
    assert [control.name for control in accuracy.controls] == injected
    assert [r.name for r in inference.recordings] == [r.name for r in subject.artifact.content.recordings]
    assert next(gate for gate in accuracy.gates if gate.name == "controls.missed").value == 0
    assert {gate.name for gate in accuracy.gates} >= set(gates)
    return accuracy


# What a bug is put into: the subject's modules, or those of the package, which are then patched.
Injection = tuple[str, Callable[[Any, pytest.MonkeyPatch], None]]


def assert_seen(subject: Subject, injected: Injection, patch: pytest.MonkeyPatch, gate: str | None = None) -> None:
    """The bug fails the verdict by the errors of its graph."""
    graph, inject = injected
    inject(subject, patch)
    accuracy = subject.judged(Fault(inject.__name__, graph, "", subject.eager(graph)))
    assert accuracy.verdict == "fail", accuracy.reason
    assert f"{gate or subject.errors}.relative_l2" in failed(accuracy)


def assert_blamed(subject: Subject, graph: Any, fault: Run, recording: str, blamed: str) -> None:
    """Other tokens come out of the recording, and the right stage is told."""
    accuracy = subject.judged(Fault("rolled", graph, "", fault), recording)
    assert "task.tokens" in failed(accuracy)
    [heard] = accuracy.recordings
    assert isinstance(heard, RecordingAccuracy)
    assert heard.blamed == blamed
    assert heard.remark.endswith(f", because of {blamed}")


def assert_not_finite_fails(subject: Subject, graph: str, output: str, case: str, recording: str) -> set[str]:
    """Numbers that are none block the recording and fail the case; return the gates that fail."""
    accuracy = subject.judged(Fault("NaN", graph, "", partial(not_finite, name=output)), case, recording)
    assert accuracy.verdict == "fail"
    assert "overflow.non_finite" in failed(accuracy)
    assert f"expected finite {output}" in (accuracy.recordings[0].blocked or "")
    return failed(accuracy)


def assert_blocked(subject: Subject, graph: str, decided: str, recording: str) -> EngineAccuracy:
    """A graph that raises blocks decisions and recording, and passes nothing."""
    accuracy = subject.judged(Fault("no kernel", graph, "", without_kernel), decided, recording)
    assert accuracy.verdict == "blocked"
    assert {run.blocked for run in (*accuracy.teacher_forced, *accuracy.frame_decisions)} == {NO_KERNEL}
    assert accuracy.recordings[0].blocked == NO_KERNEL
    return accuracy


def failed(accuracy: EngineAccuracy) -> set[str]:
    return {gate.name for gate in accuracy.gates if gate.passed is False}
