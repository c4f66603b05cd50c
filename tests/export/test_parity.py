"""The comparison with the source: faults are put into transformers' side, and every one must be found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from export.families import open_model
from export.families.whisper.source import TransformersWhisper
from export.golden import Clip, Golden
from export.parity import LIMIT_RELATIVE_L2, distance, source_parity
from export.weights import resolve_weights
from runtime.artifact import open_artifact
from runtime.errors import ExitCode, GateError
from runtime.golden import Golden as StoredGolden


@pytest.fixture
def golden(pocket_artifact: Path) -> Golden:
    content = open_artifact(pocket_artifact).content
    return Golden(load_file(pocket_artifact / "golden.safetensors"), list(content.cases))


@pytest.fixture
def source(pocket_artifact: Path) -> TransformersWhisper:
    _, model = open_model(resolve_weights("whisper-pocket", None))
    found = model.source(pocket_artifact / "weights.safetensors")
    assert isinstance(found, TransformersWhisper)
    return found


def _layer_norm_eps(source: TransformersWhisper) -> None:
    for module in source.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-3


def _one_weight(source: TransformersWhisper) -> None:
    with torch.no_grad():
        source.model.model.decoder.layers[0].self_attn.q_proj.weight.mul_(1.001)


def _swapped_heads(source: TransformersWhisper) -> None:
    with torch.no_grad():
        weight = source.model.model.decoder.layers[1].encoder_attn.v_proj.weight
        weight.copy_(weight.roll(32, 0))


def _positions_off_by_one(source: TransformersWhisper) -> None:
    with torch.no_grad():
        weight = source.model.model.decoder.embed_positions.weight
        weight.copy_(weight.roll(1, 0))


def _gain(source: TransformersWhisper) -> None:
    source._extract.mel_filters = source._extract.mel_filters * 1.01


def _late_by_one_sample(source: TransformersWhisper) -> None:
    extract = source._extract
    source._extract = lambda audio, **options: extract(np.roll(audio, 1), **options)


@pytest.mark.parametrize(
    ("fault", "output"),
    [
        (_layer_norm_eps, "output (hidden|cross_._.|logits|probabilities|scores|new_self_._.)"),
        (_one_weight, "output (logits|probabilities|scores|new_self_._.)"),
        (_swapped_heads, "output cross_v_1"),
        (_positions_off_by_one, "output (logits|probabilities|scores|new_self_._.)"),
        (_gain, "output mel"),
        (_late_by_one_sample, "output mel"),
    ],
)
def test_a_fault_on_one_side_is_found(
    fault: Callable[[TransformersWhisper], None], output: str, golden: Golden, source: TransformersWhisper
):
    assert source_parity(golden, source, (), "whisper-pocket fp32").implementation.startswith("transformers 5.")
    fault(source)
    with pytest.raises(GateError, match=output) as caught:
        source_parity(golden, source, (), "whisper-pocket fp32")
    assert caught.value.exit_code == ExitCode.GATE_FAILED
    assert str(caught.value).startswith("whisper-pocket fp32: case ")
    assert "\n" not in str(caught.value)


def test_a_nan_in_an_output_is_found(golden: Golden, source: TransformersWhisper):
    golden.arrays["speech/hidden"][0, 7, 7] = np.nan
    with pytest.raises(GateError, match="case speech, output hidden: relative L2 inf"):
        source_parity(golden, source, (), "whisper-pocket fp32")


def test_another_text_shows(golden: Golden, source: TransformersWhisper, pocket_artifact: Path):
    recordings = open_artifact(pocket_artifact).content.recordings[:1]
    clips = [Clip(pocket_artifact / recordings[0].file, None)]
    assert clips[0].file == recordings[0].file
    golden.cases, golden.recordings = golden.cases[:1], list(recordings)
    assert source_parity(golden, source, clips, "").results_equal == {"short_en": True}
    golden.recordings = [recordings[0].model_copy(update={"result": {"text": "set a timer"}})]
    with pytest.raises(GateError, match=r"short_en: transformers 5\.\S+ hears something else than 'set a timer'"):
        source_parity(golden, source, clips, "")


def test_distances_are_those_of_the_hand_calculation():
    golden, source = np.array([[3.0, 4.0]], np.float32), np.array([[3.0, 5.0]], np.float32)
    assert distance(golden, source) == pytest.approx((1 / 34**0.5, 0.2))


@pytest.mark.parametrize(
    ("golden", "source"),
    [([np.nan, 1], [1, 1]), ([1, 1], [np.inf, 1]), ([1, 1], [1, 1, 1]), ([1e-3], [0])],
)
def test_nan_infinity_another_shape_and_anything_beside_zeros_are_above_every_limit(
    golden: list[float], source: list[float]
):
    assert distance(np.array(golden, np.float32), np.array(source, np.float32))[0] > LIMIT_RELATIVE_L2


def test_teacher_forced_logits_that_are_not_the_sources_are_refused(source: TransformersWhisper, pocket_artifact: Path):
    """What the source is off by there becomes a limit: a golden run along other tokens would excuse everything."""
    artifact = open_artifact(pocket_artifact)
    stored, runs = StoredGolden(artifact), artifact.content.teacher_forced
    cases = [case for case in artifact.content.cases if case.name == runs[0].encoder_case]
    keys = [part.key for case in cases for part in (*case.inputs.values(), *case.outputs.values())]
    golden = Golden({key: stored.array(key) for key in (*keys, runs[0].logits)}, cases, list(runs))
    source_parity(golden, source, (), "sound")
    golden.arrays[runs[0].logits] = np.roll(golden.arrays[runs[0].logits], 1, axis=0)
    with pytest.raises(GateError, match=r"^late: teacher-forced run forced_short_en: relative L2 "):
        source_parity(golden, source, (), "late")
