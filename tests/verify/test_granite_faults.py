"""Granite Speech: every known bug fails by name in fp32, fp16 and bf16, and the sound graphs do not.

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
)
from safetensors.torch import load_file
from transformers.models.granite.modeling_granite import apply_rotary_pos_emb

from export.families.granite_speech import graphs as graphs_module
from export.families.granite_speech import language_model, modules
from export.families.granite_speech.model import GraniteModel
from export.weights import resolve_weights
from runtime.engines.base import Value
from runtime.families.granite_speech import features, recognizer
from verify.accuracy import judge_engine
from verify.families import granite_speech
from verify.faults import Arrays, Fault, FaultyEngine, RunGraph

FAMILY, RECORDING = "granite", "short_en"
GRAPHS = ("encode_project", "embed", "prefill", "decode")


@pytest.fixture
def subject(opened: OpenVariants, granite_checkpoint: Path, variant: str) -> Subject:
    artifact, engine = opened[variant]
    given = ("granite-random", str(granite_checkpoint)) if variant == "fp32" else ("granite-pocket", "random")
    model = GraniteModel(resolve_weights(*given))
    return Subject(artifact, engine, model.graphs(DTYPES[variant], artifact.file("weights.safetensors")))


@pytest.mark.parametrize("variant", VARIANTS)
def test_sound_graphs_pass_and_every_control_is_caught(subject: Subject) -> None:
    accuracy = judged_with_controls(subject)
    for run, golden in zip(accuracy.teacher_forced, subject.artifact.content.teacher_forced, strict=True):
        assert run.name == golden.name
        assert run.positions == run.agreed == len(golden.tokens) - golden.prompt > 10
        assert run.decided > 0
        assert run.least_margin > 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_sound_modules_pass(subject: Subject, graph: str) -> None:
    accuracy = subject.judged(Fault("none", graph, "", subject.eager(graph)))
    assert accuracy.verdict == "pass", accuracy.reason


def padding_attended_to(_: Subject, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(modules, "MASKED", 0.0)


def padding_convolved(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = modules.ConformerConvolution.forward
    patch.setattr(
        modules.ConformerConvolution, "forward", lambda self, rows, live: original(self, rows, torch.ones_like(live))
    )


def window_by_one(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = modules.Projector.forward
    patch.setattr(modules.Projector, "forward", lambda self, frames: original(self, frames.roll(1, dims=0)))


def distances_by_one(subject: Subject, _: pytest.MonkeyPatch) -> None:
    subject.graphs["encode_project"].module.distances.add_(1)


def distances_mirrored(subject: Subject, _: pytest.MonkeyPatch) -> None:
    module = subject.graphs["encode_project"].module
    module.distances.copy_(module.distances.flip(0))


def not_self_conditioned(subject: Subject, _: pytest.MonkeyPatch) -> None:
    out_mid = subject.graphs["encode_project"].module.encoder.out_mid
    out_mid.weight.zero_()
    out_mid.bias.zero_()


def position_by_one(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = graphs_module.rope_rotation
    patch.setattr(graphs_module, "rope_rotation", lambda positions, *given: original(positions + 1, *given))


def rotated_in_pairs(_: Subject, patch: pytest.MonkeyPatch) -> None:
    """Elements 2 i and 2 i + 1 in place of i and i + dh / 2."""
    original = language_model.rotate

    def faulty(heads: torch.Tensor, rotation: Any) -> torch.Tensor:
        halves = torch.cat([heads[..., ::2], heads[..., 1::2]], dim=-1)
        return original(halves, rotation).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)

    patch.setattr(language_model, "rotate", faulty)


def future_seen(_: Subject, patch: pytest.MonkeyPatch) -> None:
    """Or, in `decode`, cache rows that nothing was written to."""
    patch.setattr(graphs_module, "MASKED", 0.0)


def multiplier_dropped(subject: Subject, _: pytest.MonkeyPatch) -> None:
    for graph in ("prefill", "decode"):
        subject.graphs[graph].module.multiplier = 1.0


def residual_dropped(subject: Subject, _: pytest.MonkeyPatch) -> None:
    for layer in subject.graphs["prefill"].module.decoder.layers:
        layer.residual = 1.0


def attention_scaled_as_usual(subject: Subject, _: pytest.MonkeyPatch) -> None:
    for layer in subject.graphs["prefill"].module.decoder.layers:
        layer.self_attn.scale = layer.self_attn.head_dim**-0.5


def logits_not_divided(subject: Subject, _: pytest.MonkeyPatch) -> None:
    subject.graphs["prefill"].module.language_model.scaling = 1.0


def queries_with_other_keys(subject: Subject, _: pytest.MonkeyPatch) -> None:
    """Head h reads the keys of head h % G, where it is h // (H / G)."""
    for layer in subject.graphs["prefill"].module.decoder.layers:
        attention = layer.self_attn
        rows = attention.q_proj.weight.unflatten(0, (-1, attention.groups, attention.head_dim))
        attention.q_proj.weight.copy_(rows.transpose(0, 1).flatten(0, 2).clone())


INJECTED: dict[str, Injection] = {
    "padding attended to": ("encode_project", padding_attended_to),
    "padding convolved": ("encode_project", padding_convolved),
    "projector window misaligned by one": ("encode_project", window_by_one),
    "distances off by one": ("encode_project", distances_by_one),
    "distances mirrored": ("encode_project", distances_mirrored),
    "not self-conditioned": ("encode_project", not_self_conditioned),
    "RoPE position off by one in prefill": ("prefill", position_by_one),
    "RoPE position off by one in decode": ("decode", position_by_one),
    "RoPE over pairs": ("prefill", rotated_in_pairs),
    "future seen": ("prefill", future_seen),
    "rows not written seen": ("decode", future_seen),
    "embedding multiplier dropped in prefill": ("prefill", multiplier_dropped),
    "embedding multiplier dropped in decode": ("decode", multiplier_dropped),
    "residual multiplier dropped": ("prefill", residual_dropped),
    "attention scaled by the head's size": ("prefill", attention_scaled_as_usual),
    "logits not divided": ("prefill", logits_not_divided),
    "queries with other keys": ("prefill", queries_with_other_keys),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", INJECTED)
def test_a_bug_in_the_modules_fails(subject: Subject, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_seen(subject, INJECTED[name], monkeypatch)


def test_a_batch_norm_that_is_not_folded_fails(subject: Subject, granite_checkpoint: Path) -> None:
    """Weights as the checkpoint stores them; its convolution has no bias. Random weights have no BatchNorm."""
    stored = load_file(granite_checkpoint / "model.safetensors")
    for index, layer in enumerate(subject.graphs["encode_project"].module.encoder.layers):
        layer.conv.depth_conv.conv.weight.copy_(stored[f"encoder.layers.{index}.conv.depth_conv.conv.weight"])
        layer.conv.depth_conv.conv.bias.zero_()
    accuracy = subject.judged(Fault("not folded", "encode_project", "", subject.eager("encode_project")))
    assert "structure.relative_l2" in failed(accuracy)


def test_keys_are_turned_as_transformers_turns_them() -> None:
    """By which two of the controls move positions."""
    rows = torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(0))

    def at(first: int) -> torch.Tensor:
        frequencies = 1000.0 ** (-torch.arange(0, 16, 2) / 16)
        angles = torch.outer(torch.arange(first, first + 5), frequencies).repeat(1, 2)[None]
        turned: torch.Tensor = apply_rotary_pos_emb(rows, rows, angles.cos(), angles.sin())[1]
        return turned

    for by in (1, -1):
        found = granite_speech.turned(at(3).numpy(), by, theta=1000.0)
        np.testing.assert_allclose(found, at(3 + by), atol=1e-6)


class ForgetfulEngine(FaultyEngine):
    """Never writes a row behind the prompt's."""

    def write_rows(self, cache: Value, rows: Value, at: int, count: int) -> None:
        if at == 0:
            super().write_rows(cache, rows, at, count)


def test_rows_that_the_loop_does_not_write_fail_decisions(subject: Subject) -> None:
    engine = ForgetfulEngine(subject.engine, subject.artifact, Fault("stale rows", "none", "", lambda run, x: run(x)))
    forced = {run.name for run in subject.artifact.content.teacher_forced}
    accuracy, _ = judge_engine(subject.artifact, engine, selected=forced)
    assert {"decisions.tokens", "decisions.kl"} <= failed(accuracy)


def test_another_window_function_fails_by_the_features(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A symmetric Hann window, which moves features by a thousandth."""

    def symmetric(frontend: Any) -> Any:
        hann = np.hanning(frontend.win_length).astype(np.float32)
        left = (frontend.n_fft - frontend.win_length) // 2
        return np.pad(hann, (left, frontend.n_fft - frontend.win_length - left))

    case = f"recording_{RECORDING}"
    sound = subject.judged(Fault("none", "none", "", lambda run, x: run(x)), case)
    assert sound.verdict == "pass"
    assert [found.graph for found in sound.cases] == ["features (host)", "encode_project"]
    monkeypatch.setattr(features, "_window", symmetric)
    accuracy = subject.judged(Fault("none", "none", "", lambda run, x: run(x)), case)
    [gate] = [gate for gate in accuracy.gates if gate.name == "structure.relative_l2"]
    assert gate.passed is False
    assert gate.where == f"features (host)/{case} features"


def rolled(run: RunGraph, inputs: Arrays, names: tuple[str, ...]) -> Arrays:
    outputs = run(inputs)
    return {**outputs, **{name: np.roll(outputs[name], 7, axis=-1) for name in names}}


def late_features(original: Callable[..., Any], *given: Any) -> Any:
    return np.roll(original(*given), 40, axis=1)


@pytest.mark.parametrize(
    ("graph", "names", "blamed"),
    [
        ("none", (), "the front-end"),
        ("encode_project", ("encoder_out", "audio_embeds"), "the encoder"),
        ("encode_project", ("audio_embeds",), "the projector"),
        (("prefill", "decode"), ("logits",), "the language model"),
    ],
)
def test_blame(
    subject: Subject, graph: Any, names: tuple[str, ...], blamed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blamed == "the front-end":
        monkeypatch.setattr(recognizer, "log_mel", partial(late_features, recognizer.log_mel))
    assert_blamed(subject, graph, partial(rolled, names=names), RECORDING, blamed)


def test_logits_that_are_not_finite_block_the_recording_and_fail_the_case(subject: Subject) -> None:
    assert_not_finite_fails(subject, "prefill", "logits", "prefill_speech", RECORDING)


def test_a_graph_that_raises_is_blocked_not_passed(subject: Subject) -> None:
    assert_blocked(subject, "decode", subject.artifact.content.teacher_forced[0].name, RECORDING)
