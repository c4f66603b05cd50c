"""Parakeet checkpoints in transformers' layout."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from ctc_checkpoints import ENCODER, randomise
from parakeet_checkpoints import (
    POCKET_NEMO,
    assert_one_line,
    set_key,
)
from peft_adapters import write_peft_adapter

from export.families import checkpoints
from export.families.parakeet_tdt.checkpoint import ParakeetCheckpoint
from export.families.parakeet_tdt.graphs import parakeet_graphs
from export.families.parakeet_tdt.modules import Parakeet
from export.fastconformer.graphs import Constants
from export.fastconformer.standin import standin_tokenizer
from export.fastconformer.transformers_folder import filters, hann_window
from export.weights import family_of, resolve_weights
from runtime.errors import InputError
from runtime.fastconformer.settings import FastConformerFrontend


@pytest.fixture(scope="module")
def source() -> transformers.ParakeetForTDT:
    """A small random Parakeet of transformers."""
    torch.manual_seed(1)
    config = transformers.ParakeetTDTConfig(
        vocab_size=65,
        blank_token_id=64,
        decoder_hidden_size=24,
        durations=[0, 1, 2, 4],
        max_symbols_per_step=7,
        encoder_config=ENCODER,
    )
    model = transformers.ParakeetForTDT(config).eval()
    randomise(model)
    return model


@pytest.fixture
def folder(source: transformers.ParakeetForTDT, tmp_path: Path) -> Path:
    source.save_pretrained(tmp_path)
    transformers.ParakeetFeatureExtractor(feature_size=80).save_pretrained(tmp_path)
    standin_tokenizer(64).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_transformers_folder_computes_what_transformers_does(source: transformers.ParakeetForTDT, folder: Path):
    weights = resolve_weights("my-parakeet", str(folder))
    assert family_of(weights, checkpoints()) == "parakeet_tdt"
    checkpoint = ParakeetCheckpoint.open(weights)
    settings = checkpoint.settings
    assert (settings.durations, settings.max_symbols, settings.tokenizer_file) == ((0, 1, 2, 4), 7, "tokenizer.json")
    assert (checkpoint.dims.use_bias, checkpoint.dims.xscaling, checkpoint.dims.blank) == (1, 1, 64)
    assert checkpoint.tokenizer == (folder / "tokenizer.json").read_bytes()
    assert {file.name for file in checkpoint.files} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
    }
    with torch.device("meta"):
        model = Parakeet(checkpoint.dims)
    model.load_state_dict({name: checkpoint.read(name) for name in checkpoint.tensors}, assign=True)
    constants = Constants(checkpoint.window, checkpoint.filters)
    built = parakeet_graphs(
        model, constants, checkpoint.dims, checkpoint.frontend, checkpoint.settings, dtype=torch.float32
    )
    graphs = {name: graph.module for name, graph in built.items()}
    audio = torch.randn(1, 16000)
    inputs = transformers.ParakeetFeatureExtractor(feature_size=80)(
        audio[0].numpy(), sampling_rate=16000, return_tensors="pt"
    )
    with torch.inference_mode():
        features, n_frames = graphs["frontend"](audio, torch.tensor([16000]))
        torch.testing.assert_close(features.transpose(1, 2), inputs["input_features"], rtol=1e-3, atol=1e-3)
        frames, _ = graphs["encoder"](features, n_frames)
        expected = source.get_audio_features(inputs["input_features"], inputs["attention_mask"]).pooler_output
        torch.testing.assert_close(frames[:, : expected.shape[1]], expected, rtol=1e-3, atol=1e-3)
        zeros = torch.zeros(2, 1, 24)
        logits, *_ = graphs["step"](torch.tensor([5]), zeros, zeros, frames[:, 3])
        joint = source.joint(source.decoder(torch.tensor([[5]])), frames[:, 3:4])
        torch.testing.assert_close(logits, joint[:, 0], rtol=1e-4, atol=1e-5)


def test_window_and_filters_are_those_of_nemo_and_transformers():
    nemo, frontend = ParakeetCheckpoint.from_nemo(POCKET_NEMO), FastConformerFrontend()
    torch.testing.assert_close(hann_window(frontend), nemo.window, rtol=1e-5, atol=2e-7)
    torch.testing.assert_close(filters(frontend), nemo.filters, rtol=1e-5, atol=1e-8)
    theirs = transformers.ParakeetFeatureExtractor(feature_size=128).mel_filters
    torch.testing.assert_close(filters(frontend), theirs, rtol=1e-4, atol=1e-7)


def test_a_processor_config_serves_as_well(folder: Path):
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": {**config, "preemphasis": 0.5}}))
    assert ParakeetCheckpoint.from_transformers(folder).frontend.preemphasis == 0.5


@pytest.mark.parametrize(
    ("file", "key", "value", "told"),
    [
        ("config.json", "hidden_act", "tanh", "hidden_act: found 'tanh', supported is 'relu'"),
        ("config.json", "encoder_config.hidden_act", "relu", "hidden_act: found 'relu', supported is 'silu'"),
        ("config.json", "encoder_config.subsampling_factor", 4, "subsampling_factor: found 4, supported is 8"),
        ("config.json", "encoder_config.convolution_bias", False, "convolution_bias: found False"),
        ("config.json", "encoder_config.num_hidden_layers", -1, "num_hidden_layers: found -1"),
        ("config.json", "encoder_config.num_hidden_layers", 1 << 20, "more layers than it has tensors"),
        ("config.json", "encoder_config.num_attention_heads", 3, "num_attention_heads: found 3"),
        ("config.json", "encoder_config.conv_kernel_size", 8, "conv_kernel_size: found 8"),
        ("config.json", "encoder_config", None, "encoder_config: found None"),
        ("config.json", "blank_token_id", 0, "blank_token_id: found 0, supported is vocab_size - 1, 64"),
        ("config.json", "durations", [0], "durations: found [0]"),
        ("config.json", "durations", "x", "durations: found"),
        ("config.json", "max_symbols_per_step", 0, "max_symbols_per_step: found 0"),
        ("config.json", "vocab_size", 66, "blank_token_id"),
        ("preprocessor_config.json", "feature_size", 128, "expected a ParakeetFeatureExtractor with 80 mels"),
        ("preprocessor_config.json", "feature_extractor_type", "WhisperFeatureExtractor", "WhisperFeatureExtractor"),
        ("preprocessor_config.json", "hop_length", 0, "expected a ParakeetFeatureExtractor"),
        ("tokenizer.json", "model", None, "expected a tokenizer"),
    ],
)
def test_a_transformers_option_is_refused_by_name(folder: Path, file: str, key: str, value: object, told: str):
    config = json.loads((folder / file).read_text())
    set_key(config, key, value)
    (folder / file).write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        ParakeetCheckpoint.from_transformers(folder)
    assert_one_line(caught.value, str(folder / file) if "layers than" not in told else "", told)


@pytest.mark.parametrize("file", ["tokenizer.json", "preprocessor_config.json", "model.safetensors", "config.json"])
def test_a_missing_file_is_named(folder: Path, file: str):
    (folder / file).unlink()
    with pytest.raises(InputError) as caught:
        ParakeetCheckpoint.from_transformers(folder)
    assert_one_line(caught.value, str(folder), file)


def test_transformers_other_parakeets_are_refused_by_name(folder: Path):
    kind = "parakeet_rnnt"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": kind, "architectures": ["X"]}))
    with pytest.raises(InputError, match=kind):
        family_of(resolve_weights("my-parakeet", str(folder)), checkpoints())


def test_an_adapter_of_peft_gives_the_tensors_of_peft_s_merged_folder(folder: Path, tmp_path: Path):
    model = transformers.ParakeetForTDT.from_pretrained(folder)
    targets = ["q_proj", "linear1", "pointwise_conv1", "subsampling.layers.0", "encoder_projector", "joint.head"]
    adapted = write_peft_adapter(model, tmp_path / "adapter", r=4, target_modules=targets)
    merged = Path(shutil.copytree(folder, tmp_path / "merged"))
    adapted.merge_and_unload().save_pretrained(merged)
    weights = replace(resolve_weights("my-parakeet", str(folder)), adapter=tmp_path / "adapter")
    ours, theirs, plain = (
        ParakeetCheckpoint.open(weights),
        ParakeetCheckpoint.from_transformers(merged),
        ParakeetCheckpoint.from_transformers(folder),
    )
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {file.name for file in ours.files}
    changed = 0
    for name in theirs.tensors:
        torch.testing.assert_close(ours.read(name), theirs.read(name), rtol=0, atol=1e-6)
        changed += not torch.equal(ours.read(name), plain.read(name))
    # Of each of the two layers: one query, two feed-forwards, one convolution.
    assert changed == 2 * 4 + 3


def test_another_folder_s_tokenizer_is_taken(folder: Path, tmp_path: Path):
    other = tmp_path / "tokenizer"
    other.mkdir()
    shutil.move(folder / "tokenizer.json", other / "tokenizer.json")
    checkpoint = ParakeetCheckpoint.open(replace(resolve_weights("my-parakeet", str(folder)), tokenizer=other))
    assert checkpoint.tokenizer == (other / "tokenizer.json").read_bytes()
    assert other / "tokenizer.json" in checkpoint.files


def test_a_nemo_file_takes_no_other_tokenizer(folder: Path):
    with pytest.raises(InputError) as caught:
        ParakeetCheckpoint.open(replace(resolve_weights("parakeet-pocket", None), tokenizer=folder))
    assert_one_line(caught.value, str(folder), f"{POCKET_NEMO.name} has one of its own; give the .nemo file alone")
