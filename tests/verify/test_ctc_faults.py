"""Parakeet-CTC: the sound graphs pass, every known bug fails by name, and the stage to blame is told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from faulty_modules import OpenVariants, Subject, failed, judged_with_controls, rolled

from verify.faults import Arrays, Fault, RunGraph
from verify.results import RecordingAccuracy

FAMILY = "ctc"
pytestmark = pytest.mark.slow


@pytest.fixture
def subject(opened: OpenVariants, variant: str) -> Subject:
    return Subject(*opened[variant], {})


def test_sound_graphs_pass_and_every_control_is_caught(subject: Subject) -> None:
    accuracy = judged_with_controls(subject)
    assert {"decisions.tokens", "decisions.kl", "task.text", "task.times", "task.tokens"} <= {
        gate.name for gate in accuracy.gates
    }
    # A choice in each frame of each case of the encoder, and no more.
    cases = {case.name for case in subject.artifact.content.cases if case.graph == "encoder"}
    assert {run.name for run in accuracy.teacher_forced} == cases
    recording = next(run for run in accuracy.teacher_forced if run.name == "short_en_recording")
    # 3.056 s: 305 frames of features, an eighth of them.
    assert recording.positions == recording.agreed == 39


@pytest.mark.parametrize(
    ("graph", "fault", "blamed"),
    [
        ("frontend", partial(rolled, name="features", by=40, axis=1), "the front-end"),
        ("encoder", partial(rolled, name="logits", by=50, axis=2), "the encoder"),
    ],
)
def test_blame(subject: Subject, graph: str, fault: Callable[[RunGraph, Arrays], Arrays], blamed: str) -> None:
    accuracy = subject.judged(Fault("rolled", graph, "", fault), "short_en")
    assert "task.tokens" in failed(accuracy)
    [recording] = accuracy.recordings
    assert isinstance(recording, RecordingAccuracy)
    assert recording.blamed == blamed


def test_logits_that_are_not_finite_block_the_recording(subject: Subject) -> None:
    def nan(run: RunGraph, inputs: Arrays) -> Arrays:
        outputs = run(inputs)
        return {**outputs, "logits": outputs["logits"] * np.float32("nan")}

    accuracy = subject.judged(Fault("NaN", "encoder", "", nan), "short_en")
    assert accuracy.verdict != "pass"
    [recording] = accuracy.recordings
    assert "expected finite logits, found NaN or Inf" in (recording.blocked or "")
