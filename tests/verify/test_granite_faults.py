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
    VARIANTS,
    OpenVariants,
    assert_blamed,
    assert_blocked,
    assert_not_finite_fails,
    assert_seen,
    judged_with_controls,
)
from safetensors.torch import load_file
from self_test.catalogue import faults_of
from self_test.catalogue.granite import INJECTED
from self_test.subject import DTYPES, Subject, failed
from transformers.models.granite.modeling_granite import apply_rotary_pos_emb

from export.families.granite_speech.model import GraniteModel
from export.weights import resolve_weights
from runtime.families.granite_speech import recognizer
from verify.families import granite_speech
from verify.faults import Arrays, Fault, RunGraph

FAMILY, RECORDING = "granite", "short_en"
FAULTS = faults_of("granite-pocket")
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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", INJECTED)
def test_a_bug_in_the_modules_fails(subject: Subject, name: str) -> None:
    assert_seen(subject, FAULTS[name])


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


def test_rows_that_the_loop_does_not_write_fail_decisions(subject: Subject) -> None:
    accuracy = FAULTS["rows of the cache forgotten"].judge(subject)
    assert {"decisions.tokens", "decisions.kl"} <= failed(accuracy)


def test_another_window_function_fails_by_the_features(subject: Subject) -> None:
    case = f"recording_{RECORDING}"
    sound = subject.judged(Fault("none", "none", "", lambda run, x: run(x)), case)
    assert sound.verdict == "pass"
    assert [found.graph for found in sound.cases] == ["features (host)", "encode_project"]
    [gate] = [g for g in FAULTS["symmetric window"].judge(subject).gates if g.name == "structure.relative_l2"]
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
