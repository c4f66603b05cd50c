"""Parakeet-TDT: every known bug fails by name in fp32, fp16 and bf16, and the sound graphs do not.

Bugs within the network are injected into export's own modules, run eagerly on the artifact's weights in place of the
frozen graph; the sound modules run the same way first, to show that it is the bug that is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty_modules import (
    DTYPES,
    VARIANTS,
    Injection,
    OpenVariants,
    Subject,
    assert_blamed,
    assert_blocked,
    assert_not_finite_fails,
    assert_seen,
    failed,
    judged_with_controls,
    rolled,
)

from export.families.parakeet_tdt.model import ParakeetModel
from export.fastconformer import graphs as graphs_module
from export.fastconformer import modules
from export.weights import resolve_weights
from runtime.families.parakeet_tdt import recognizer as recognizer_module
from verify.accuracy import judge_engine
from verify.faults import Arrays, Fault, RunGraph

FAMILY, RECORDING = "parakeet", "short_en_2"


@dataclass(frozen=True)
class ParakeetSubject(Subject):
    """With the model that its graphs were made of."""

    model: ParakeetModel


@pytest.fixture
def subject(opened: OpenVariants, parakeet_checkpoint: Path, variant: str) -> ParakeetSubject:
    artifact, engine = opened[variant]
    model = ParakeetModel(resolve_weights("parakeet-pocket", str(parakeet_checkpoint)))
    return ParakeetSubject(artifact, engine, model.graphs(DTYPES[variant], artifact.file("weights.safetensors")), model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sound_graphs_pass_and_every_control_is_caught(subject: ParakeetSubject) -> None:
    accuracy = judged_with_controls(subject)
    assert [run.name for run in accuracy.teacher_forced] == ["search durations", "search tokens"]
    for run in accuracy.teacher_forced:
        assert run.positions == run.agreed > len(subject.artifact.content.teacher_forced[0].tokens)
        assert run.least_margin > 0
        assert run.flipped_margin == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_sound_modules_pass(subject: ParakeetSubject) -> None:
    for graph in ("frontend", "encoder", "step"):
        accuracy = subject.judged(Fault("none", graph, "", subject.eager(graph)))
        assert accuracy.verdict == "pass", accuracy.reason


def relative_shift_by_one(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = modules.relative_shift
    patch.setattr(modules, "relative_shift", lambda x: original(x.roll(1, dims=3)))


def mask_by_one(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = modules.live_frames
    patch.setattr(modules, "live_frames", lambda x, lengths: original(x, lengths + 1))


def padding_attended_to(_: Subject, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(graphs_module, "MASKED", 0.0)


def batch_norm_not_folded(subject: ParakeetSubject, _: pytest.MonkeyPatch) -> None:
    """Weights as the checkpoint stores them; its convolution has no bias, or one before the normalisation."""
    for index, layer in enumerate(subject.graphs["encoder"].module.encoder.layers):
        name = f"encoder.layers.{index}.conv.depthwise_conv"
        stored = subject.model._checkpoint.stored
        layer.conv.depthwise_conv.weight.copy_(stored.read(f"{name}.weight"))
        layer.conv.depthwise_conv.bias.zero_()


def input_scaled(subject: ParakeetSubject, _: pytest.MonkeyPatch) -> None:
    module = subject.graphs["encoder"].module
    module.scale = math.sqrt(module.encoder.pre_encode.out.out_features)


def positions_mirrored(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = modules.relative_positions
    patch.setattr(graphs_module, "relative_positions", lambda *given: original(*given).flip(0))


def normalised_with_padding(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = graphs_module.LogMel._normalized

    def faulty(logmel: torch.Tensor, n_frames: torch.Tensor) -> torch.Tensor:
        return original(logmel, torch.full_like(n_frames, logmel.shape[2]))

    patch.setattr(graphs_module.LogMel, "_normalized", staticmethod(faulty))


def no_preemphasis(subject: ParakeetSubject, _: pytest.MonkeyPatch) -> None:
    subject.graphs["frontend"].module.preemphasis = 0.0


def gates_in_another_order(subject: ParakeetSubject, _: pytest.MonkeyPatch) -> None:
    """ONNX's order, i o f c, in place of torch's, i f g o."""
    decoder = subject.graphs["step"].module.decoder
    for parameter in decoder.prediction.dec_rnn.lstm.parameters():
        inward, forget, new, outward = parameter.clone().chunk(4)
        parameter.copy_(torch.cat([inward, outward, forget, new]))


INJECTED: dict[str, Injection] = {
    "relative shift off by one": ("encoder", relative_shift_by_one),
    "mask off by one": ("encoder", mask_by_one),
    "padding attended to": ("encoder", padding_attended_to),
    "BatchNorm not folded": ("encoder", batch_norm_not_folded),
    "encoder's input scaled": ("encoder", input_scaled),
    "positions mirrored": ("encoder", positions_mirrored),
    "normalisation after padding": ("frontend", normalised_with_padding),
    "preemphasis forgotten": ("frontend", no_preemphasis),
    "LSTM gates in another order": ("step", gates_in_another_order),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", INJECTED)
def test_a_bug_in_the_modules_fails(subject: ParakeetSubject, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_seen(subject, INJECTED[name], monkeypatch, "structure" if INJECTED[name][0] == "frontend" else None)


def biased_variance(run: RunGraph, inputs: Arrays) -> Arrays:
    """Divide by n in place of n - 1."""
    outputs = run(inputs)
    count = np.maximum(outputs["features_len"], 2)[:, None, None]
    return {**outputs, "features": (outputs["features"] * np.sqrt(count / (count - 1))).astype(np.float32)}


def another_start_token(run: RunGraph, inputs: Arrays, blank: int) -> Arrays:
    return run({**inputs, "token": np.where(inputs["token"] == blank, 0, inputs["token"])})


def test_small_differences_fail(subject: ParakeetSubject) -> None:
    accuracy = subject.judged(Fault("variance over n", "frontend", "", biased_variance))
    assert "structure.relative_l2" in failed(accuracy)
    blank = subject.artifact.content.dims["n_vocab"]
    accuracy = subject.judged(Fault("start token 0", "step", "", partial(another_start_token, blank=blank)))
    assert "structure.relative_l2" in failed(accuracy)


@pytest.mark.parametrize("output", ["logit", "log_sum_exp", "mean_logit", "tokens", "durations", "at"])
def test_every_column_of_the_search_on_the_device_is_judged(subject: ParakeetSubject, output: str) -> None:
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
def test_blame(subject: ParakeetSubject, graph: Any, fault: Callable[[RunGraph, Arrays], Arrays], blamed: str) -> None:
    assert_blamed(subject, graph, fault, RECORDING, blamed)


def test_frames_that_are_not_finite_block_the_recording_and_fail_the_case(subject: ParakeetSubject) -> None:
    assert_not_finite_fails(subject, "encoder", "frames", "speech", RECORDING)


def test_a_step_that_raises_is_blocked_not_passed(subject: ParakeetSubject) -> None:
    assert len(assert_blocked(subject, "step", "search", RECORDING).teacher_forced) == 2


def hotwords_dead(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recognizer_module, "hotword_tree", lambda *_: None)


def batch_reversed(patch: pytest.MonkeyPatch) -> None:
    original = recognizer_module._TransducerSearch.whole

    def whole(self: Any, encoded: Any, places: Any) -> Any:
        return original(self, encoded, places)[::-1]

    patch.setattr(recognizer_module._TransducerSearch, "whole", whole)


def last_window_lost(patch: pytest.MonkeyPatch) -> None:
    original = recognizer_module.search_windows
    patch.setattr(recognizer_module, "search_windows", lambda *given: list(original(*given))[:-1])


def words_late(patch: pytest.MonkeyPatch) -> None:
    """One frame late from the second token on: a segment of one sentence begins where it should."""
    original = recognizer_module.timed_tokens

    def late(*given: Any) -> Any:
        first, *others = original(*given)
        shifted = [replace(t, span=replace(t.span, start=t.span.start + 1)) for t in others]
        return [first, *shifted]

    patch.setattr(recognizer_module, "timed_tokens", late)


# With the recordings in which each has to show, and the gate that says so.
OF_THE_RUNTIME: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str]] = {
    "hotwords dead": (hotwords_dead, "_hotword", "task.text"),
    "batch order reversed": (batch_reversed, "", "task.batch"),
    "last window lost": (last_window_lost, "_windows", "task.text"),
    "words one frame late": (words_late, "", "task.times"),
}


@pytest.mark.parametrize("name", OF_THE_RUNTIME)
def test_a_fault_of_the_runtime_fails(opened: OpenVariants, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings alone, none of whose graphs is wrong; that the sound runtime passes is the first test's."""
    artifact, engine = opened["fp32"]
    install, ending, gate = OF_THE_RUNTIME[name]
    selected = {recording.name for recording in artifact.content.recordings if recording.name.endswith(ending)}
    assert selected
    install(monkeypatch)
    accuracy, _ = judge_engine(artifact, engine, selected=selected)
    assert not any(recording.blocked for recording in accuracy.recordings)
    assert gate in failed(accuracy)
