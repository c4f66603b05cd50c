"""Sound events: every known bug fails by name in fp32, fp16 and bf16, and the sound graphs do not.

Bugs in weights are injected into export's own modules, run eagerly on the artifact's weights in place of the frozen
graph; the sound modules run the same way first, to show that it is the bug that is seen.
"""

from __future__ import annotations

import numpy as np
import pytest
from faulty_modules import (
    VARIANTS,
    OpenVariants,
    assert_blocked,
    assert_not_finite_fails,
    judged_with_controls,
)
from self_test.catalogue import faults_of
from self_test.catalogue.sounds import OF_EVENTS, HalfPooling, half_scores, symmetric_window
from self_test.subject import DTYPES, Subject, failed

from export.families.cnn8rnn.model import Cnn8RnnModel
from export.weights import resolve_weights
from runtime.golden import Golden
from verify.accuracy import judge_engine
from verify.events import judge_frames
from verify.families import cnn8rnn
from verify.faults import Fault, FaultyEngine
from verify.questions import SOUND_GATES

FAMILY = "sed"
FAULTS = faults_of("sed-pocket")


@pytest.fixture(params=VARIANTS)
def subject(opened: OpenVariants, request: pytest.FixtureRequest) -> Subject:
    artifact, engine = opened[request.param]
    model = Cnn8RnnModel(resolve_weights("sed-pocket", None))
    return Subject(artifact, engine, model.graphs(DTYPES[request.param], artifact.file("weights.safetensors")))


@pytest.mark.parametrize("graph", ["frontend", "gates", "recurrence", "head"])
def test_sound_modules_pass(subject: Subject, graph: str) -> None:
    accuracy = subject.judged(Fault("none", graph, "", subject.eager(graph)))
    assert accuracy.verdict == "pass", accuracy.reason


def test_sound_graphs_pass_and_every_control_is_caught(subject: Subject) -> None:
    structure = ("structure.relative_l2", "structure.max_relative", "overflow.non_finite")
    accuracy = judged_with_controls(subject, {*structure, *SOUND_GATES})
    assert len(accuracy.frame_decisions) == sum(case.graph == "head" for case in subject.artifact.content.cases)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_gru_direction_dropped(subject: Subject, direction: str) -> None:
    accuracy = FAULTS[f"{direction} direction of the GRU dropped"].judge(subject)
    assert accuracy.verdict == "fail"
    assert {f"{subject.errors}.relative_l2", "decisions.scores", "decisions.frames"} <= failed(accuracy)


@pytest.mark.parametrize("subject", VARIANTS[:2], indirect=True)  # of bf16 no port's limit is asked
@pytest.mark.parametrize("name", [name for name in FAULTS if name.startswith("recurrence: ")])
def test_states_that_are_carried_wrong(subject: Subject, name: str) -> None:
    """No case of a graph is run: what the runtime does between them is seen in the whole network's logits alone."""
    accuracy = FAULTS[name].judge(subject)
    assert accuracy.verdict == "fail"
    assert failed(accuracy) & {"ports.relative_l2", "decisions.scores", "decisions.frames"}
    assert {case.graph for case in accuracy.cases} == {"head"}


def test_symmetric_hann_in_the_kernel(subject: Subject) -> None:
    """And the control of the same name, which has no kernel to change, makes the same log-mel of it."""
    with pytest.MonkeyPatch.context() as patch:
        symmetric_window(subject, patch)
    faulty = subject.eager("frontend")
    accuracy = subject.judged(Fault("symmetric Hann", "frontend", "", faulty))
    assert accuracy.verdict == "fail"
    assert "structure.relative_l2" in failed(accuracy)
    for case in accuracy.cases:
        assert case.outputs[0].difference.relative_l2 < 0.01, "an error that a limit of 1 % lets pass"
    control = next(f for f in cnn8rnn.faults(subject.artifact) if f.name == "symmetric Hann window")
    sound = Subject(subject.artifact, subject.engine, subject.graphs)
    case = next(case for case in subject.artifact.content.cases if case.name == "noise_audio")
    inputs = Golden(subject.artifact).inputs(case)
    made = FaultyEngine(sound.engine, subject.artifact, control)
    found = made.get(made.run("frontend", {"audio": made.put(inputs["audio"], "float32")})["logmel"])
    np.testing.assert_allclose(found, faulty(lambda arrays: arrays, inputs)["logmel"], atol=1e-3)


@pytest.mark.parametrize("part", ["pooling", "sigmoid"])
def test_head_in_fp16(subject: Subject, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if part == "pooling":
        monkeypatch.setattr(cnn8rnn, "ClipPooling", HalfPooling)
    else:
        monkeypatch.setattr(cnn8rnn, "scores_from_logits", half_scores)
    accuracy, _ = judge_engine(subject.artifact, subject.engine, selected={"sounds", "speech"})
    assert accuracy.verdict == "fail"
    assert "structure.head" in failed(accuracy)


def test_fp16_body_is_below_one_per_cent_with_the_fp32_head_only() -> None:
    """Logits as of 447 classes, most of which are never heard: squares of their scores vanish in float16.

    The body's error is that of logits rounded to float16, and as much again.
    """
    rng = np.random.default_rng(0)
    golden = (rng.uniform(-12, 0, 447) + rng.normal(0, 1, (250, 447))).astype(np.float32)
    logits = (golden * (1 + 5e-4 * rng.standard_normal(golden.shape))).astype(np.float16).astype(np.float32)
    errors = {}
    for name, scores_of, pooling_of in (
        ("fp32", cnn8rnn.scores_from_logits, cnn8rnn.ClipPooling),
        ("fp16", half_scores, HalfPooling),
    ):
        scores, pooling = scores_of(logits), pooling_of(447)
        pooling.push(scores)
        judged = judge_frames("case", golden, logits, (scores, pooling.result()), [np.full(447, 0.5, np.float32)])
        errors[name] = judged.clip_mean_relative
    assert errors["fp32"] < 0.01 < errors["fp16"]


def test_events_a_quarter_of_a_second_late(subject: Subject) -> None:
    """Beyond the collar; no graph is wrong by value but for the delay."""
    assert failed(FAULTS["a quarter of a second late"].judge(subject)) == {"task.events", "task.event_times"}


def test_two_classes_swapped_on_a_recording(subject: Subject) -> None:
    accuracy = FAULTS["two classes swapped"].judge(subject)
    assert failed(accuracy) == {"task.events", "task.event_times", "task.tags"}
    assert accuracy.recordings[0].remark == "event-F1 0.833 against the golden run"


def test_logits_that_are_not_finite_block_the_recording_and_fail_the_case(subject: Subject) -> None:
    found = assert_not_finite_fails(subject, "head", "logits", "sounds", "sed_1")
    assert {"decisions.scores", "decisions.frames"} <= found


def test_a_body_that_raises_is_blocked_not_passed(subject: Subject) -> None:
    assert_blocked(subject, "head", "sounds", "sed_1")


@pytest.mark.parametrize("name", OF_EVENTS)
def test_times_and_scores_of_events(subject: Subject, name: str) -> None:
    """What a runtime says of scores that are right; neither the collar of 200 ms nor tags see the first two."""
    seen = {"every event's score 0.5": "task.event_scores"}.get(name, "task.event_times")
    found = failed(FAULTS[name].judge(subject))
    assert seen in found
    if name in {"events 0.16 s late", "every event's score 0.5"}:
        assert found == {seen}
