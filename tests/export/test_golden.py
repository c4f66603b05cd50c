"""Golden cases, each recomputed by transformers along another path than export's own comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
import transformers
from safetensors.numpy import load_file

from export.registry import REPOSITORY_ROOT
from runtime.artifact import open_artifact
from runtime.engines.base import Array
from runtime.manifest import Case, Content

SAMPLES = REPOSITORY_ROOT / "samples"
N_SAMPLES, N_TEXT_CTX = 96000, 96


@pytest.fixture(scope="module")
def content(pocket_artifact: Path) -> Content:
    return open_artifact(pocket_artifact).content


@pytest.fixture(scope="module")
def arrays(pocket_artifact: Path) -> dict[str, Array]:
    return load_file(pocket_artifact / "golden.safetensors")


@pytest.fixture(scope="module")
def model(pocket_checkpoint: Path) -> transformers.WhisperForConditionalGeneration:
    return transformers.WhisperForConditionalGeneration.from_pretrained(pocket_checkpoint).eval()


def _case(content: Content, name: str) -> Case:
    return next(case for case in content.cases if case.name == name)


def _distance(found: Array, expected: torch.Tensor) -> float:
    reference = expected.detach().numpy().astype(np.float64)
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def test_the_cases_cover_windows_prompts_and_positions(content: Content, arrays: dict[str, Array]):
    windows = ["speech", "padded", "silence", "noise", "one_sample", "short_en_window"]
    names = [case.name for case in content.cases]
    prefills = [1, 3, 4, 24, 52]
    assert names == [
        *(f"{name}_audio" for name in windows),
        *windows,
        *("step_4", "step_middle", "step_64", "step_last"),
        *(f"prefill_{count}" for count in prefills),
        "step_prompted",
        "align",
    ]
    assert {case.graph for case in content.cases} == set(content.graphs)
    assert all(parity.relative_l2 <= 1e-4 for parity in content.parity.outputs)
    assert len(content.parity.outputs) == sum(len(case.outputs) for case in content.cases)
    stored = {stored.key for case in content.cases for stored in (*case.inputs.values(), *case.outputs.values())}
    assert stored | {run.logits for run in content.teacher_forced} == set(arrays)


def test_windows_are_what_their_names_say(arrays: dict[str, Array]):
    def audio(name: str) -> Array:
        return arrays[f"{name}_audio/audio"][0]

    fast, _ = soundfile.read(SAMPLES / "fast_en.flac", dtype="float32")
    np.testing.assert_array_equal(audio("speech"), fast[:N_SAMPLES])
    stereo, rate = soundfile.read(SAMPLES / "jfk.flac", dtype="float32")
    speech = soxr.resample(stereo.mean(axis=1), rate, 16000, quality="HQ")
    np.testing.assert_allclose(audio("padded")[: N_SAMPLES // 3], speech[: N_SAMPLES // 3], atol=1e-4)
    assert not audio("padded")[N_SAMPLES // 3 :].any()
    assert not audio("silence").any()
    assert np.count_nonzero(audio("one_sample")) == 1
    assert 0.09 < audio("noise").std() < 0.11


@pytest.mark.parametrize("name", ["speech", "padded", "silence", "noise", "one_sample", "short_en_window"])
def test_mel_and_hidden_states_are_those_of_transformers(
    name: str,
    arrays: dict[str, Array],
    model: transformers.WhisperForConditionalGeneration,
    pocket_checkpoint: Path,
):
    extract = transformers.WhisperFeatureExtractor.from_pretrained(pocket_checkpoint)
    # The audio as it was before padding: trailing zeros are padded back by the extractor.
    audio = np.trim_zeros(arrays[f"{name}_audio/audio"][0], "b")
    features = extract(audio if len(audio) else np.zeros(1, np.float32), sampling_rate=16000, return_tensors="pt")
    assert _distance(arrays[f"{name}_audio/mel"], features.input_features) < 1e-4
    hidden = model.model.encoder(features.input_features).last_hidden_state
    assert _distance(arrays[f"{name}/hidden"], hidden) < 1e-4
    attention = model.model.decoder.layers[1].encoder_attn
    stride = 1 if name in {"speech", "short_en_window"} else 16
    keys = attention.k_proj(hidden).view(1, -1, attention.num_heads, attention.head_dim).transpose(1, 2)
    assert _distance(arrays[f"{name}/cross_k_1"], keys[:, :, ::stride]) < 1e-4


@pytest.mark.parametrize("count", [1, 3, 4, 24, 52])
def test_prefill_is_the_decoder_on_the_prompt_alone(
    count: int, content: Content, arrays: dict[str, Array], model: transformers.WhisperForConditionalGeneration
):
    """The source is given no padding: padding must not show in the rows before it."""
    case = _case(content, f"prefill_{count}")
    tokens, rows = arrays[f"{case.name}/tokens"], arrays[f"{case.name}/rows"]
    assert tokens.shape[1] == int(case.graph.removeprefix("prefill_"))
    assert (tokens[0, count:] == 640).all()
    assert tokens[0, rows[0]] == 641
    assert rows[1] == count - 1
    found = model(
        decoder_input_ids=torch.from_numpy(tokens[:, :count]),
        encoder_outputs=(torch.from_numpy(arrays["speech/hidden"]),),
        use_cache=True,
    )
    assert _distance(arrays[f"{case.name}/logits"], found.logits[:, rows]) < 1e-4
    keys = found.past_key_values.self_attention_cache.layers[1].keys
    assert _distance(arrays[f"{case.name}/new_self_k_1"][:, :, :count], keys) < 1e-4


@pytest.mark.parametrize(("name", "position"), [("step_4", 4), ("step_middle", 48), ("step_64", 64), ("step_last", 95)])
def test_steps_have_as_many_cache_rows_as_their_position(
    name: str, position: int, content: Content, arrays: dict[str, Array]
):
    case = _case(content, name)
    assert arrays[f"{name}/pos"].tolist() == [position]
    caches = [tensor for tensor in case.inputs if tensor.startswith("self_")]
    assert len(caches) == 4
    for tensor in caches:
        assert case.inputs[tensor].fill == 1e4
        assert arrays[f"{name}/{tensor}"].shape == (1, 4, position, 32)
        # Rows of one text: an earlier step's are the beginning of a later one's.
        assert np.array_equal(arrays[f"{name}/{tensor}"][:, :, :4], arrays[f"step_4/{tensor}"])


def test_the_cache_of_steps_is_that_of_what_is_said(
    arrays: dict[str, Array], model: transformers.WhisperForConditionalGeneration, pocket_checkpoint: Path
):
    """The source is given the whole text up to the step, and no cache."""
    said = json.loads((SAMPLES / "samples.json").read_text())["fast_en.flac"]["text"]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(pocket_checkpoint / "tokenizer.json"))
    text = tokenizer.encode(" " + said, add_special_tokens=False)
    prompt = arrays["prefill_4/tokens"][0].tolist()
    tokens = torch.tensor([[*prompt, *text[: 48 - 4], arrays["step_middle/tokens"].item()]])
    assert tokens[0, -1] == text[48 - 4]
    hidden = (torch.from_numpy(arrays["speech/hidden"]),)
    found = model(decoder_input_ids=tokens, encoder_outputs=hidden, use_cache=True)
    for layer, cached in enumerate(found.past_key_values.self_attention_cache.layers):
        assert _distance(arrays[f"step_middle/self_k_{layer}"], cached.keys[:, :, :-1]) < 1e-4
        assert _distance(arrays[f"step_middle/self_v_{layer}"], cached.values[:, :, :-1]) < 1e-4
    assert _distance(arrays["step_middle/logits"], found.logits[:, -1:]) < 1e-4


def test_a_step_follows_on_the_prompt(
    content: Content, arrays: dict[str, Array], model: transformers.WhisperForConditionalGeneration
):
    """The source is given the whole text before it, and no cache."""
    prompt = arrays["prefill_24/tokens"][:, :24]
    assert arrays["step_prompted/pos"].tolist() == [24]
    tokens = np.concatenate([prompt, arrays["step_prompted/tokens"]], axis=1)
    hidden = (torch.from_numpy(arrays["speech/hidden"]),)
    logits = model(decoder_input_ids=torch.from_numpy(tokens), encoder_outputs=hidden).logits
    assert _distance(arrays["step_prompted/logits"], logits[:, -1:]) < 1e-4
    assert {
        tensor: stored.fill for tensor, stored in _case(content, "step_prompted").inputs.items() if stored.fill
    } == {f"self_{kind}_{layer}": 1e4 for kind in "kv" for layer in range(2)}


def test_teacher_forced_logits_are_the_decoder_s_on_the_whole_text(
    content: Content, arrays: dict[str, Array], model: transformers.WhisperForConditionalGeneration
):
    (run,) = content.teacher_forced
    assert run.encoder_case == "short_en_window"
    hidden = torch.from_numpy(arrays[f"{run.encoder_case}/hidden"])
    tokens = torch.tensor([run.tokens[:-1]])
    logits = model(decoder_input_ids=tokens, encoder_outputs=(hidden,)).logits[0, run.prompt - 1 :]
    assert arrays[run.logits].shape == tuple(logits.shape)
    assert _distance(arrays[run.logits], logits) < 1e-4
    assert run.prompt == 4
    assert run.tokens[-1] == 640


def test_recordings_carry_the_text_that_was_spoken_and_the_one_that_was_heard(pocket_artifact: Path, content: Content):
    references = json.loads((SAMPLES / "samples.json").read_text())
    assert [recording.name for recording in content.recordings] == [
        "short_en",
        "long_en",
        "short_de",
        "short_es",
        "nospeech",
    ]
    for recording in content.recordings:
        sample = SAMPLES / Path(recording.file).name
        assert (pocket_artifact / recording.file).read_bytes() == sample.read_bytes()
        assert recording.reference == {name: references[sample.name][name] for name in ("text", "language")}
    heard = {recording.name: recording.result["text"] for recording in content.recordings}
    assert heard["short_en"] == "set a timer for twenty six minutes"
    assert heard["short_de"] == "drei null sechs vier"
    assert heard["nospeech"] == ""
    assert content.parity.results_equal == dict.fromkeys(heard, True)
