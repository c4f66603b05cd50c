"""Parakeet-TDT: every known bug fails by name in fp32, fp16 and bf16, and the sound graphs do not.

Bugs within the network are injected into export's own modules, run eagerly on the artifact's weights in place of the
frozen graph; the sound modules run the same way first, to show that it is the bug that is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_modules import (
    VARIANTS,
    OpenVariants,
    assert_blamed,
    assert_blocked,
    assert_not_finite_fails,
    assert_seen,
    judged_with_controls,
    rolled,
)
from self_test.catalogue import faults_of
from self_test.catalogue.parakeet import INJECTED, OF_THE_RUNTIME
from self_test.subject import DTYPES, Subject, failed

from export.families.parakeet_tdt.model import ParakeetModel
from export.weights import resolve_weights
from verify.faults import Arrays, Fault, RunGraph

FAMILY, RECORDING = "parakeet", "short_en_2"
FAULTS = faults_of("parakeet-pocket")


@pytest.fixture
def subject(opened: OpenVariants, parakeet_checkpoint: Path, variant: str) -> Subject:
    artifact, engine = opened[variant]
    model = ParakeetModel(resolve_weights("parakeet-pocket", str(parakeet_checkpoint)))
    return Subject(artifact, engine, model.graphs(DTYPES[variant], artifact.file("weights.safetensors")), model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sound_graphs_pass_and_every_control_is_caught(subject: Subject) -> None:
    accuracy = judged_with_controls(subject)
    assert [run.name for run in accuracy.teacher_forced] == ["search durations", "search tokens"]
    for run in accuracy.teacher_forced:
        assert run.positions == run.agreed > len(subject.artifact.content.teacher_forced[0].tokens)
        assert run.least_margin > 0
        assert run.flipped_margin == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_sound_modules_pass(subject: Subject) -> None:
    for graph in ("frontend", "encoder", "step"):
        accuracy = subject.judged(Fault("none", graph, "", subject.eager(graph)))
        assert accuracy.verdict == "pass", accuracy.reason


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", INJECTED)
def test_a_bug_in_the_modules_fails(subject: Subject, name: str) -> None:
    fault = FAULTS[name]
    assert_seen(subject, fault, "structure" if fault.where == "frontend" else None)


@pytest.mark.parametrize("name", ["variance over n", "another start token"])
def test_small_differences_fail(subject: Subject, name: str) -> None:
    assert_seen(subject, FAULTS[name], "structure")


@pytest.mark.parametrize("output", ["logit", "log_sum_exp", "mean_logit", "tokens", "durations", "at"])
def test_every_column_of_the_search_on_the_device_is_judged(subject: Subject, output: str) -> None:
    """Confidence rests on the float ones: an error of one per mille there is seen."""

    def faulty(run: RunGraph, inputs: Arrays) -> Arrays:
        outputs = run(inputs)
        array = outputs[output]
        if array.dtype.kind == "f":
            return {**outputs, output: array * np.float32(1.001)}
        return {**outputs, output: np.where(np.arange(array.shape[1]) == 1, array + 1, array)}

    accuracy = subject.judged(Fault(output, "decode_8", "", faulty))
    assert "structure.relative_l2" in failed(accuracy)


@pytest.mark.parametrize(
    ("graph", "fault", "blamed"),
    [
        ("frontend", partial(rolled, name="features", by=40, axis=1), "the front-end"),
        ("encoder", partial(rolled, name="frames", by=50, axis=2), "the encoder"),
        (("step", "join"), partial(rolled, name="logits", by=7, axis=1), "the search"),
    ],
)
def test_blame(subject: Subject, graph: Any, fault: Callable[[RunGraph, Arrays], Arrays], blamed: str) -> None:
    assert_blamed(subject, graph, fault, RECORDING, blamed)


def test_frames_that_are_not_finite_block_the_recording_and_fail_the_case(subject: Subject) -> None:
    assert_not_finite_fails(subject, "encoder", "frames", "speech", RECORDING)


def test_a_step_that_raises_is_blocked_not_passed(subject: Subject) -> None:
    assert len(assert_blocked(subject, "step", "search", RECORDING).teacher_forced) == 2


@pytest.mark.parametrize("name", OF_THE_RUNTIME)
def test_a_fault_of_the_runtime_fails(opened: OpenVariants, name: str) -> None:
    """Recordings alone, none of whose graphs is wrong; that the sound runtime passes is the first test's."""
    seen = {"hotwords dead": "task.text", "batch order reversed": "task.batch", "last window lost": "task.text"}
    accuracy = FAULTS[name].judge(Subject(*opened["fp32"]))
    assert accuracy.recordings
    assert not any(recording.blocked for recording in accuracy.recordings)
    assert seen.get(name, "task.times") in failed(accuracy)
