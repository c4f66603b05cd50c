"""Sound events: every known bug fails by name in fp32, fp16 and bf16, and the sound graphs do not.

Bugs in weights are injected into export's own modules, run eagerly on the artifact's weights in place of the frozen
graph; the sound modules run the same way first, to show that it is the bug that is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty_modules import Subject, failed

from export.families.cnn8rnn.model import Cnn8RnnModel
from export.weights import resolve_weights
from runtime.artifact import Artifact, open_artifact
from runtime.engines import open_engine
from runtime.engines.base import Engine, Floats
from runtime.families.cnn8rnn.heads import SMALLEST
from runtime.golden import Golden
from verify.accuracy import judge_engine
from verify.events import judge_frames
from verify.families import cnn8rnn
from verify.faults import Arrays, Fault, FaultyEngine, RunGraph
from verify.golden import select

ENGINES = {"fp32": "onnxruntime", "fp16": "onnxruntime", "bf16": "torchscript"}


@pytest.fixture(scope="module")
def subjects(
    sed_artifact: Path, sed_fp16_artifact: Path, sed_bf16_artifact: Path
) -> Iterator[dict[str, tuple[Artifact, Engine]]]:
    opened = {}
    for path in (sed_artifact, sed_fp16_artifact, sed_bf16_artifact):
        artifact = open_artifact(path)
        variant = artifact.content.variant
        opened[variant] = artifact, open_engine(artifact, ENGINES[variant], threads=1)
    yield opened
    for _, engine in opened.values():
        engine.close()


@pytest.fixture(params=ENGINES)
def subject(subjects: dict[str, tuple[Artifact, Engine]], request: pytest.FixtureRequest) -> Subject:
    artifact, engine = subjects[request.param]
    model = Cnn8RnnModel(resolve_weights("sed-pocket", None))
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[request.param]
    return Subject(artifact, engine, model.graphs(dtype, artifact.file("weights.safetensors")))


@pytest.mark.parametrize(
    ("subject", "graph"),
    [
        *(("fp32", graph) for graph in ("frontend", "body")),
        ("fp16", "body"),
        ("bf16", "body"),
    ],
    indirect=["subject"],
)
def test_sound_modules_pass(subject: Subject, graph: str) -> None:
    accuracy = subject.judged(Fault("none", graph, "", subject.eager(graph)))
    assert accuracy.verdict == "pass", accuracy.reason


@pytest.mark.parametrize("subject", ["fp32", "fp16", "bf16"], indirect=True)
def test_sound_engine_passes(subject: Subject) -> None:
    accuracy, inference = judge_engine(subject.artifact, subject.engine, selected=select(subject.artifact, None))
    assert accuracy.verdict == "pass", accuracy.reason
    assert {gate.name for gate in accuracy.gates} >= {
        "structure.relative_l2",
        "structure.max_relative",
        "structure.head",
        "decisions.scores",
        "decisions.frames",
        "task.events",
        "task.tags",
        "overflow.non_finite",
    }
    assert len(accuracy.frame_decisions) == sum(case.graph == "body" for case in subject.artifact.content.cases)
    assert [r.name for r in inference.recordings] == [r.name for r in subject.artifact.content.recordings]


def test_built_in_controls_are_all_caught(subject: Subject) -> None:
    accuracy, _ = judge_engine(subject.artifact, subject.engine, selected=select(subject.artifact, None), controls=True)
    assert {control.name: control.failed_gates for control in accuracy.controls if not control.caught} == {}
    assert [control.name for control in accuracy.controls] == [f.name for f in cnn8rnn.faults(subject.artifact)]
    assert next(gate for gate in accuracy.gates if gate.name == "controls.missed").value == 0


@pytest.mark.parametrize("direction", ["", "_reverse"])
def test_gru_direction_dropped(subject: Subject, direction: str) -> None:
    """Its weights are zero: from first states of zero, it stays there."""
    for name, parameter in subject.graphs["body"].module.rnn.named_parameters():
        if name.endswith(f"_l0{direction}"):
            parameter.zero_()
    accuracy = subject.judged(Fault("direction dropped", "body", "", subject.eager("body")))
    assert accuracy.verdict == "fail"
    assert {f"{subject.errors}.relative_l2", "decisions.scores", "decisions.frames"} <= failed(accuracy)


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

    accuracy = subject.judged(Fault("late", "body", "", late), "sed_1")
    assert failed(accuracy) == {"task.events"}


def test_two_classes_swapped_on_a_recording(subject: Subject) -> None:
    def swap(run: RunGraph, inputs: Arrays) -> Arrays:
        logits = run(inputs)["logits"]
        logits[..., [0, 5]] = logits[..., [5, 0]]
        return {"logits": logits}

    accuracy = subject.judged(Fault("swap", "body", "", swap), "sed_1")
    assert failed(accuracy) == {"task.events", "task.tags"}
    assert accuracy.recordings[0].remark == "event-F1 0.833 against the golden run"


def test_logits_that_are_not_finite_block_the_recording_and_fail_the_case(subject: Subject) -> None:
    def nan(run: RunGraph, inputs: Arrays) -> Arrays:
        return {"logits": run(inputs)["logits"] * np.float32("nan")}

    accuracy = subject.judged(Fault("NaN", "body", "", nan), "sounds", "sed_1")
    assert accuracy.verdict == "fail"
    assert {"decisions.scores", "decisions.frames", "overflow.non_finite"} <= failed(accuracy)
    assert "expected finite logits" in (accuracy.recordings[0].blocked or "")


def test_a_body_that_raises_is_blocked_not_passed(subject: Subject) -> None:
    def refuse(_run: RunGraph, _inputs: Arrays) -> Arrays:
        raise RuntimeError("no kernel\nfor it")

    accuracy = subject.judged(Fault("no kernel", "body", "", refuse), "sounds", "sed_1")
    assert accuracy.verdict == "blocked"
    assert accuracy.frame_decisions[0].blocked == "RuntimeError: no kernel for it"
    assert accuracy.recordings[0].blocked == "RuntimeError: no kernel for it"
