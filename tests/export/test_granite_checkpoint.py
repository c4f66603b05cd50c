"""Granite Speech checkpoints as the hub and transformers lay them out, against transformers itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from granite_checkpoints import (
    AUDIO,
    END_OF_TEXT,
    write_granite_checkpoint,
)
from parakeet_checkpoints import assert_one_line, set_key
from safetensors.torch import load_file, save_file
from torch.nn import functional

from export.families import checkpoints, open_model
from export.families.granite_speech.checkpoint import EMBEDDING, HEAD, GraniteCheckpoint
from export.families.granite_speech.config import GraniteConfig, ctc_characters, padded_lengths
from export.families.granite_speech.graphs import granite_graphs
from export.families.granite_speech.modules import Granite
from export.registry import MODELS
from export.weights import family_of, resolve_weights
from runtime.errors import InputError
from runtime.families.granite_speech.settings import GraniteDims, GraniteScales


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_granite_checkpoint(tmp_path_factory.mktemp("granite") / "original")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of `original` to change."""
    for file in original.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change(path: Path, key: str, value: object) -> None:
    """Set `section.key` of a JSON file."""
    config = json.loads(path.read_text())
    set_key(config, key, value)
    path.write_text(json.dumps(config))


def change_tensors(folder: Path, changed: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    changed(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="hub names"),
        pytest.param({"new_names": True, "shards": 3}, id="new names, split"),
        pytest.param({"tied": True, "dtype": torch.bfloat16}, id="tied, bf16"),
        pytest.param({"tied": True, "new_names": True, "encoder_layers": 3}, id="tied, new names"),
    ],
)
def test_the_tensors_are_those_that_transformers_reads(options: dict[str, Any], tmp_path: Path):
    write_granite_checkpoint(tmp_path, **options)
    theirs = transformers.GraniteSpeechForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    weights = resolve_weights("my-granite", str(tmp_path))
    assert family_of(weights, checkpoints()) == "granite_speech"
    checkpoint = GraniteCheckpoint(tmp_path)
    for name, info in checkpoint.tensors.items():
        tensor = checkpoint.read(name)
        assert (tuple(tensor.shape), tensor.dtype) == (info.shape, info.dtype), name
    with torch.device("meta"):
        ours = Granite(checkpoint.dims, checkpoint.settings.scales)
    ours.load_state_dict({name: checkpoint.read(name).float() for name in checkpoint.tensors}, assign=True)
    assert (HEAD in checkpoint.tensors) == (not options.get("tied"))
    graphs = granite_graphs(ours, checkpoint.dims, checkpoint.settings, torch.float32)
    features = torch.randn(1, checkpoint.dims.unit, 160)
    tokens = torch.tensor([[5, 200, 17, 63, END_OF_TEXT, 41]])
    with torch.inference_mode():
        _, embeds, _ = graphs["encode_project"].module(features, torch.tensor([checkpoint.dims.unit]))
        expected = theirs.get_audio_features(features, return_dict=True).pooler_output
        torch.testing.assert_close(embeds.flatten(0, 1), expected[0], rtol=1e-4, atol=1e-5)
        logits, *_ = graphs["prefill"].module(graphs["embed"].module(tokens), torch.tensor([6]))
        # transformers forgets to divide by logits_scaling.
        torch.testing.assert_close(logits * 8, theirs(input_ids=tokens).logits[:, -1], rtol=1e-3, atol=1e-4)


def test_what_was_read_is_told(original: Path):
    checkpoint = GraniteCheckpoint(original)
    assert {file.name for file in checkpoint.files} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert checkpoint.tokenizer_json == (original / "tokenizer.json").read_bytes()
    assert (checkpoint.settings.audio_token, checkpoint.settings.eos) == (AUDIO, (END_OF_TEXT,))
    assert checkpoint.settings.audio_text == "<|audio|>"
    assert checkpoint.dims.unit == 120
    assert checkpoint.settings.scales == GraniteScales(attention_multiplier=0.0625)


@pytest.mark.parametrize("variance", [4e-10, 0.0, 1.0, 1e6])
def test_the_fold_is_batch_norm_behind_the_convolution(variance: float, folder: Path):
    prefix = "encoder.layers.1.conv"
    torch.manual_seed(0)

    def poison(state: dict[str, torch.Tensor]) -> None:
        state[f"{prefix}.batch_norm.running_var"].fill_(variance)

    change_tensors(folder, poison)
    checkpoint, state = GraniteCheckpoint(folder), load_file(folder / "model.safetensors")
    weight, bias = (checkpoint.read(f"{prefix}.depth_conv.conv.{kind}") for kind in ("weight", "bias"))
    assert weight.dtype == bias.dtype == torch.float32
    channels = weight.shape[0]
    norm = torch.nn.BatchNorm1d(channels).double().eval().requires_grad_(requires_grad=False)
    norm.load_state_dict(
        {key.removeprefix(f"{prefix}.batch_norm."): value for key, value in state.items() if "1.conv.batch_norm" in key}
    )
    x = torch.randn(1, channels, 40, dtype=torch.float64)
    expected = norm(functional.conv1d(x, state[f"{prefix}.depth_conv.conv.weight"].double(), groups=channels))
    found = functional.conv1d(x, weight.double(), bias.double(), groups=channels)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_a_head_that_repeats_the_embedding_is_left_out(folder: Path):
    change(folder / "config.json", "tie_word_embeddings", value=True)
    with pytest.raises(InputError, match=re.escape(f"to repeat {EMBEDDING}")) as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value, "set tie_word_embeddings to false")
    change_tensors(folder, lambda state: state.update({HEAD: state[EMBEDDING].clone()}))
    checkpoint = GraniteCheckpoint(folder)
    assert HEAD not in checkpoint.tensors
    assert checkpoint.dims.tied == 1


def test_tensors_that_are_no_parameters_are_left_out(folder: Path):
    extra = {
        "encoder.attention_dists": torch.zeros(40, 40, dtype=torch.int64),
        "language_model.model.rotary_emb.inv_freq": torch.ones(8),
        "encoder.out_bpe.weight": torch.ones(384, 64),
        "encoder.out_bpe.bias": torch.ones(384),
    }
    change_tensors(folder, lambda state: state.update(extra))
    assert not extra.keys() & GraniteCheckpoint(folder).tensors.keys()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda state: state.pop("projector.query"), "projector.query missing"),
        (lambda state: state.pop(HEAD), f"{HEAD} missing"),
        (lambda state: state.pop("encoder.layers.0.conv.batch_norm.running_var"), "batch_norm.running_var missing"),
        (lambda state: state.update({"encoder.extra": torch.zeros(3)}), "encoder.extra unexpected"),
        (lambda state: state.update({"encoder.out.bias": torch.zeros(3)}), "encoder.out.bias: expected shape [48]"),
        (lambda state: state.update({"lm_head.weight": torch.zeros(3)}), "which are one"),
        (lambda state: state["encoder.layers.0.conv.batch_norm.running_var"].fill_(-1), "variances from 0 on"),
    ],
)
def test_damaged_tensors_are_refused(changed: Callable[[dict[str, torch.Tensor]], object], told: str, folder: Path):
    change_tensors(folder, changed)
    with pytest.raises(InputError) as caught:
        GraniteCheckpoint(folder).read("encoder.layers.0.conv.depth_conv.conv.bias")
    assert_one_line(caught.value, told)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model_type", "granite_speech_plus", "granite_speech_plus needs a projector over several encoder layers"),
        ("model_type", "granite_speech_nar", "granite_speech_nar needs an editing decoder"),
        ("model_type", "granite_speech5_ctc", "granite_speech5_ctc needs the encoder of Granite Speech 5"),
        ("quantization_config", {"bits": 4}, "quantization_config: found {'bits': 4}"),
        ("text_config.model_type", "granitemoehybrid", "granitemoehybrid needs Mamba layers and a mixture of experts"),
        ("text_config.model_type", "granitemoe", "granitemoe needs a mixture of experts"),
        ("text_config.model_type", "llama", "text_config.model_type: found 'llama'"),
        ("text_config.rope_parameters", {"rope_type": "yarn", "factor": 2.0}, "rope_parameters"),
        ("text_config.rope_parameters", {"rope_theta": -1}, "text_config.rope_theta: found -1"),
        ("text_config.rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling"),
        ("text_config.attention_bias", True, "text_config.attention_bias: found True"),
        ("text_config.mlp_bias", True, "text_config.mlp_bias: found True"),
        ("text_config.hidden_act", "gelu", "text_config.hidden_act: found 'gelu'"),
        ("text_config.num_key_value_heads", 4, "a divisor of num_attention_heads, 6"),
        ("text_config.num_attention_heads", 5, "text_config.num_attention_heads: found 5"),
        ("text_config.head_dim", 32, "text_config.num_attention_heads"),
        ("text_config.attention_multiplier", 0, "text_config.attention_multiplier: found 0"),
        ("text_config.logits_scaling", "8", "text_config.logits_scaling: found '8'"),
        ("text_config.vocab_size", True, "text_config.vocab_size: found True"),
        ("text_config.eos_token_id", [], "generation_config"),
        ("text_config.num_hidden_layers", 1 << 20, "more layers than the checkpoint has tensors"),
        ("text_config", None, "text_config: expected an object"),
        ("encoder_config.cat_hidden_layers", [3], "cat_hidden_layers: found [3]"),
        ("encoder_config.conv_kernel_size", 14, "conv_kernel_size: found 14, supported is an odd number"),
        ("encoder_config.context_size", 65, "context_size: found 65, supported is at most max_pos_emb, 64"),
        ("encoder_config.input_dim", 161, "input_dim: found 161"),
        ("encoder_config.num_layers", 0, "encoder_config.num_layers: found 0"),
        ("projector_config.model_type", "mlp", "projector_config.model_type: found 'mlp'"),
        ("projector_config.cross_attention_frequency", 2, "cross_attention_frequency: found 2, supported is 1"),
        ("projector_config.use_qformer_text_input", True, "use_qformer_text_input"),
        ("projector_config.hidden_act", "relu", "projector_config.hidden_act: found 'relu'"),
        ("projector_config.encoder_hidden_size", 32, "encoder_hidden_size: found 32"),
        ("projector_config.num_attention_heads", 5, "projector_config.num_attention_heads: found 5"),
        ("window_size", 14, "downsample_rate: found 5, supported is a divisor of window_size, 14"),
        ("audio_token_index", "x", "audio_token_index: found 'x'"),
        ("audio_token_index", 400, "expected tokenizer.json to have token 400"),
        ("audio_token_index", 17, "expected token 17, the audio token of config.json, to be a token"),
        ("tie_word_embeddings", "no", "tie_word_embeddings: found 'no'"),
        ("has_lora_adapter", True, "expected adapter_config.json and adapter_model.safetensors"),
    ],
)
def test_another_network_is_refused_by_name(key: str, value: object, told: str, folder: Path):
    if told == "generation_config":
        (folder / "generation_config.json").unlink()
        told = "eos_token_id: found []"
    change(folder / "config.json", key, value)
    with pytest.raises(InputError) as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value, told)


def test_a_relative_is_refused_by_the_whole_export(folder: Path):
    change(folder / "config.json", "model_type", "granite_speech_plus")
    with pytest.raises(InputError, match="granite_speech_plus needs"):
        open_model(resolve_weights("my-granite", str(folder)))


# What the config.json of granite-4.0-1b-speech says, as public readers of it quote it.
PUBLIC_4_0 = {
    "model_type": "granite_speech",
    "audio_token_index": 100352,
    "downsample_rate": 5,
    "window_size": 15,
    "has_lora_adapter": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "encoder_config": {
        "model_type": "granite_speech_encoder",
        "context_size": 200,
        "conv_expansion_factor": 2,
        "conv_kernel_size": 15,
        "dim_head": 128,
        "feedforward_mult": 4,
        "hidden_dim": 1024,
        "input_dim": 160,
        "max_pos_emb": 512,
        "num_heads": 8,
        "num_layers": 16,
        "output_dim": 348,
    },
    "projector_config": {
        "model_type": "blip_2_qformer",
        "cross_attention_frequency": 1,
        "encoder_hidden_size": 1024,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-12,
        "num_attention_heads": 16,
        "num_hidden_layers": 2,
        "position_embedding_type": "absolute",
        "use_qformer_text_input": False,
    },
    "text_config": {
        "model_type": "granite",
        "attention_bias": False,
        "attention_multiplier": 0.0078125,
        "embedding_multiplier": 12.0,
        "eos_token_id": 100257,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 4096,
        "logits_scaling": 8.0,
        "max_position_embeddings": 4096,
        "mlp_bias": False,
        "num_attention_heads": 16,
        "num_hidden_layers": 40,
        "num_key_value_heads": 4,
        "residual_multiplier": 0.22,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000, "rope_type": "default"},
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "vocab_size": 100353,
    },
}


@pytest.mark.parametrize("missing", [(), ("max_pos_emb", "context_size", "conv_kernel_size", "dim_head")])
def test_the_public_configuration_is_the_registry_s(missing: tuple[str, ...], tmp_path: Path):
    public = json.loads(json.dumps(PUBLIC_4_0))
    for key in missing:
        del public["encoder_config"][key]
    (tmp_path / "config.json").write_text(json.dumps(public))
    config = GraniteConfig(tmp_path)
    assert config.dims == GraniteDims(**MODELS["granite-4.0-1b-speech"].dims)
    assert config.scales == GraniteScales()
    assert (config.audio_token, config.eos, config.has_adapter) == (100352, (100257,), False)


@pytest.mark.parametrize(
    ("text_config", "theta"),
    [
        ({"rope_theta": 1e7}, 1e7),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5),
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e7}, 5e5),
        ({}, 10000.0),
    ],
)
def test_rope_s_base_is_read_in_both_spellings(text_config: Mapping[str, object], theta: float, tmp_path: Path):
    config = json.loads(json.dumps(PUBLIC_4_0))
    for key in ("rope_theta", "rope_parameters"):
        del config["text_config"][key]
    config["text_config"] |= text_config
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert GraniteConfig(tmp_path).scales.rope_theta == theta


@pytest.mark.parametrize(
    ("file", "key", "value", "told"),
    [
        ("preprocessor_config.json", "feature_extractor_type", "WhisperFeatureExtractor", "WhisperFeatureExtractor"),
        ("preprocessor_config.json", "melspec_kwargs.hop_length", 0, "hop_length: found 0"),
        ("preprocessor_config.json", "melspec_kwargs.mel_scale", "slaney", "melspec_kwargs: found"),
        ("preprocessor_config.json", "melspec_kwargs.n_mels", 64, "n_mels: found 64, supported is 80"),
        ("preprocessor_config.json", "melspec_kwargs.win_length", 1024, "n_mels"),
        ("preprocessor_config.json", "projector_window_size", 12, "projector_window_size: found [12, 5]"),
        ("generation_config.json", "eos_token_id", 384, "eos_token_id: found 384"),
        ("tokenizer.json", "model", "x", "expected a tokenizer"),
    ],
)
def test_side_files_of_another_model_are_refused(file: str, key: str, value: object, told: str, folder: Path):
    change(folder / file, key, value)
    with pytest.raises(InputError) as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value, told)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_told(name: str, folder: Path):
    (folder / name).unlink()
    with pytest.raises(InputError) as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value, name)


def test_the_processor_s_file_serves_as_well(folder: Path):
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    flat = {"feature_extractor_type": config["feature_extractor_type"], "n_fft": 1024, "sampling_rate": 16000}
    (folder / "processor_config.json").write_text(json.dumps({"audio_processor": flat}))
    assert GraniteCheckpoint(folder).frontend.n_fft == 1024


def test_several_ends_are_all_read(folder: Path):
    change(folder / "generation_config.json", "eos_token_id", [END_OF_TEXT, 7])
    assert GraniteCheckpoint(folder).settings.eos == (END_OF_TEXT, 7)


@pytest.mark.parametrize(
    ("n_ctx", "prefill", "cache"),
    [
        (4096, (128, 256, 512, 1024, 2048, 4096), (256, 512, 1024, 2048, 4096)),
        (131072, (128, 256, 512, 1024, 2048, 4096), (256, 512, 1024, 2048, 4096)),
        (1000, (128, 256, 512, 1000), (256, 512, 1000)),
        (100, (100,), (100,)),
    ],
)
def test_lengths_stay_within_the_context(n_ctx: int, prefill: tuple[int, ...], cache: tuple[int, ...]):
    assert padded_lengths(n_ctx) == {"prefill_lengths": prefill, "cache_lengths": cache}


def test_the_encoder_s_characters_are_the_first_256_codes():
    for n_ctc in (256, 348):
        characters = ctc_characters(n_ctc)
        assert len(characters) == 256
        assert (characters[0], characters[10], characters[ord("k")], characters[ord("ß")]) == (
            "\ufffd",
            "\ufffd",
            "k",
            "ß",
        )
        assert characters.replace("\ufffd", "").isprintable()
    assert ctc_characters(48) == ""
