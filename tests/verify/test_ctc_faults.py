"""Parakeet-CTC: the sound graphs pass, every known bug fails by name, and the stage to blame is told."""

from __future__ import annotations

from functools import partial

import pytest
from faulty_modules import (
    VARIANTS,
    OpenVariants,
    assert_blamed,
    assert_not_finite_fails,
    judged_with_controls,
    rolled,
)
from self_test.subject import Run, Subject

FAMILY = "ctc"
pytestmark = pytest.mark.slow


@pytest.fixture
def subject(opened: OpenVariants, variant: str) -> Subject:
    return Subject(*opened[variant])


@pytest.mark.parametrize("variant", VARIANTS)
def test_sound_graphs_pass_and_every_control_is_caught(subject: Subject, variant: str) -> None:
    accuracy = judged_with_controls(subject)
    # A choice in each frame of each case of the encoder, and no more.
    cases = {case.name for case in subject.artifact.content.cases if case.graph == "encoder"}
    assert {run.name for run in accuracy.teacher_forced} == cases
    recording = next(run for run in accuracy.teacher_forced if run.name == "short_en_recording")
    # 3.056 s: 305 frames of features, an eighth of them.
    assert recording.positions == 39
    if variant == "fp32":
        assert recording.agreed == 39


@pytest.mark.parametrize(
    ("graph", "fault", "blamed"),
    [
        ("frontend", partial(rolled, name="features", by=40, axis=1), "the front-end"),
        ("encoder", partial(rolled, name="logits", by=50, axis=2), "the encoder"),
    ],
)
def test_blame(subject: Subject, graph: str, fault: Run, blamed: str) -> None:
    assert_blamed(subject, graph, fault, "short_en", blamed)


def test_logits_that_are_not_finite_block_the_recording(subject: Subject) -> None:
    assert_not_finite_fails(subject, "encoder", "logits", "short_en_recording", "short_en")
