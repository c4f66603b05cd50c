"""What tests of a family's faults share: its artifacts opened, what they assert. The faults are tests/self_test/'s."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
import pytest
from self_test.known_fault import KnownFault
from self_test.subject import ENGINES, Run, Subject, failed

from runtime.artifact import Artifact, open_artifact
from runtime.engines import open_engine
from runtime.engines.base import Engine
from verify.accuracy import judge_engine
from verify.families import family_of
from verify.faults import Arrays, Fault, RunGraph
from verify.golden import select
from verify.results import EngineAccuracy, RecordingAccuracy

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


def assert_seen(subject: Subject, fault: KnownFault, gate: str | None = None) -> None:
    """The bug fails the verdict by the errors of its graph."""
    accuracy = fault.judge(subject)
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
