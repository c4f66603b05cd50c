"""Sound events: every known bug fails by name in fp32, fp16 and bf16, and the sound graphs do not.

Bugs in weights are injected into export's own modules, run eagerly on the artifact's weights in place of the frozen
graph; the sound modules run the same way first, to show that it is the bug that is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from faulty_modules import (
    DTYPES,
    VARIANTS,
    OpenVariants,
    Run,
    Subject,
    assert_blocked,
    assert_not_finite_fails,
    failed,
    judged_with_controls,
)

from export.families.cnn8rnn.model import Cnn8RnnModel
from export.weights import resolve_weights
from runtime.audio import open_audio
from runtime.engines.base import Floats
from runtime.families.cnn8rnn.heads import SMALLEST
from runtime.families.cnn8rnn.recognizer import Cnn8RnnRecognizer
from runtime.golden import Golden
from runtime.results import Event
from verify.accuracy import judge_engine
from verify.events import judge_frames
from verify.families import cnn8rnn
from verify.faults import Arrays, Fault, FaultyEngine, RunGraph
from verify.gates import gates_of
from verify.questions import SOUND_GATES

FAMILY = "sed"


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


def heads(subject: Subject) -> list[str]:
    """The cases whose decisions the whole network takes."""
    return [case.name for case in subject.artifact.content.cases if case.graph == "head"]


@pytest.mark.parametrize("direction", [0, 1], ids=["forward", "backward"])
def test_gru_direction_dropped(subject: Subject, direction: int) -> None:
    """The gates of one are zero, whatever is heard."""
    rnn = subject.graphs["gates"].module.rnn
    for parameter in (rnn.weight_ih, rnn.bias_ih):
        parameter.unflatten(0, (2, -1))[direction].zero_()
    cases = [case.name for case in subject.artifact.content.cases if case.graph == "gates"]
    accuracy = subject.judged(Fault("direction dropped", "gates", "", subject.eager("gates")), *cases, *heads(subject))
    assert accuracy.verdict == "fail"
    assert {f"{subject.errors}.relative_l2", "decisions.scores", "decisions.frames"} <= failed(accuracy)


def begins_anew(run: RunGraph, inputs: Arrays) -> Arrays:
    """Each call of the recurrence begins with zeros: the runtime carries nothing."""
    return run({**inputs, "h": np.zeros_like(inputs["h"])})


def begins_with_padding(run: RunGraph, inputs: Arrays) -> Arrays:
    """The backward direction has run over a second of zeros when it comes to the recording's last frame."""
    h = inputs["h"].copy()
    if not h.any():
        h[1] = run({"gates": np.zeros_like(inputs["gates"]), "h": h})["states"][0, 1, 24]
    return run({**inputs, "h": h})


def directions_exchanged(run: RunGraph, inputs: Arrays) -> Arrays:
    return run({**inputs, "h": inputs["h"][::-1].copy()})


@pytest.mark.parametrize("subject", VARIANTS[:2], indirect=True)  # of bf16 no port's limit is asked
@pytest.mark.parametrize("fault", [begins_anew, begins_with_padding, directions_exchanged])
def test_states_that_are_carried_wrong(subject: Subject, fault: Run) -> None:
    """No case of a graph is run: what the runtime does between them is seen in the whole network's logits alone."""
    accuracy = subject.judged(Fault("carried", "recurrence", "", fault), *heads(subject))
    assert accuracy.verdict == "fail"
    assert failed(accuracy) & {"ports.relative_l2", "decisions.scores", "decisions.frames"}
    assert {case.graph for case in accuracy.cases} == {"head"}


def test_symmetric_hann_in_the_kernel(subject: Subject) -> None:
    """And the control of the same name, which has no kernel to change, makes the same log-mel of it."""
    module = subject.graphs["frontend"].module
    periodic, symmetric = (
        torch.hann_window(1024, periodic=periodic, dtype=torch.float64) for periodic in (True, False)
    )
    module.kernel.copy_(module.kernel * torch.where(periodic > 0, symmetric / periodic, 0))
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


class HalfPooling:
    """Linear softmax in float16, as the port had it."""

    def __init__(self, _n_classes: int) -> None:
        self._scores: list[Floats] = []

    def push(self, scores: Floats) -> None:
        self._scores.append(scores)

    def result(self) -> Floats:
        scores = np.concatenate(self._scores).astype(np.float16)
        pooled = (scores * scores).sum(axis=0, dtype=np.float16) / scores.sum(axis=0, dtype=np.float16)
        return pooled.astype(np.float32)


def half_scores(logits: Floats) -> Floats:
    odds = np.exp(-np.clip(logits, -11, 11).astype(np.float16))  # above that, float16 overflows
    return np.maximum(1 / (1 + odds), np.float16(SMALLEST)).astype(np.float32)


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

    def late(run: RunGraph, inputs: Arrays) -> Arrays:
        logits = run(inputs)["logits"]
        return {"logits": logits.take(np.maximum(np.arange(logits.shape[1]) - 6, 0), axis=1)}

    accuracy = subject.judged(Fault("late", "head", "", late), "sed_1")
    assert failed(accuracy) == {"task.events", "task.event_times"}


def test_two_classes_swapped_on_a_recording(subject: Subject) -> None:
    def swap(run: RunGraph, inputs: Arrays) -> Arrays:
        logits = run(inputs)["logits"]
        logits[..., [0, 5]] = logits[..., [5, 0]]
        return {"logits": logits}

    accuracy = subject.judged(Fault("swap", "head", "", swap), "sed_1")
    assert failed(accuracy) == {"task.events", "task.event_times", "task.tags"}
    assert accuracy.recordings[0].remark == "event-F1 0.833 against the golden run"


def test_logits_that_are_not_finite_block_the_recording_and_fail_the_case(subject: Subject) -> None:
    found = assert_not_finite_fails(subject, "head", "logits", "sounds", "sed_1")
    assert {"decisions.scores", "decisions.frames"} <= found


def test_a_body_that_raises_is_blocked_not_passed(subject: Subject) -> None:
    assert_blocked(subject, "head", "sounds", "sed_1")


def shifted(events: Sequence[Event]) -> list[Event]:
    return [replace(event, onset=event.onset + 0.16, offset=event.offset + 0.16) for event in events]


def flat(events: Sequence[Event]) -> list[Event]:
    return [replace(event, score=0.5) for event in events]


def exchanged(events: Sequence[Event]) -> list[Event]:
    return [replace(event, onset=event.offset, offset=event.onset) for event in events]


def next_offset(events: Sequence[Event]) -> list[Event]:
    return [replace(event, offset=later.offset) for event, later in zip(events, [*events[1:], events[-1]], strict=True)]


@pytest.mark.parametrize(
    ("fault", "gate"),
    [
        (shifted, "task.event_times"),
        (flat, "task.event_scores"),
        (exchanged, "task.event_times"),
        (next_offset, "task.event_times"),
        (list, None),
    ],
)
def test_times_and_scores_of_events(subject: Subject, fault: Callable[..., list[Event]], gate: str | None) -> None:
    """What a runtime says of scores that are right; neither the collar of 200 ms nor tags see the first two."""
    recording = subject.artifact.content.recordings[0]
    recognizer = Cnn8RnnRecognizer(subject.artifact, subject.engine)
    result = recognizer.recognize(open_audio(subject.artifact.file(recording.file)))
    heard = replace(result, events=tuple(fault(result.events)))
    judged = cnn8rnn.judge(subject.artifact, subject.engine, recording, heard)
    content = subject.artifact.content
    gates = gates_of([], [], [judged], content.variant, content.tolerances)
    found = {made.name for made in gates if made.passed is False}
    assert (gate in found) if gate else not found
    if fault in {shifted, flat}:
        assert found == {gate}
