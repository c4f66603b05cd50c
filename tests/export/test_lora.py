"""LoRA adapters that peft writes, merged over a Whisper, against peft's own merge and transformers' own search."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from parakeet_checkpoints import POCKET_NEMO, assert_one_line
from peft_adapters import write_peft_adapter
from safetensors.torch import load_file, save_file

from export.families import open_model
from export.families.whisper.model import WhisperModel
from export.families.whisper.source import TransformersWhisper
from export.pipeline import export_model, write_weights
from export.registry import REPOSITORY_ROOT
from export.weights import resolve_weights
from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.errors import InputError
from runtime.families.whisper.options import WhisperOptions

POCKET = REPOSITORY_ROOT / "pocket" / "whisper-pocket"
SHORT = REPOSITORY_ROOT / "samples" / "short_en.wav"
ATTENTION = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
EVERYTHING = {
    "r": 8,
    "lora_alpha": 3,
    "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "conv1", "conv2"],
    "rank_pattern": {"fc1": 3, "model.encoder.layers.0.fc2": 2},
    # As peft matches them: by the module's whole name in the model that was trained.
    "alpha_pattern": {"^model.decoder.layers.1.self_attn.out_proj": 20, r"encoder.*\.conv[12]": 9},
    "task_type": "SEQ_2_SEQ_LM",
    "use_rslora": True,
}


def _base() -> transformers.WhisperForConditionalGeneration:
    return transformers.WhisperForConditionalGeneration.from_pretrained(POCKET, dtype=torch.float32)


def _opened(adapter: Path) -> WhisperModel:
    return WhisperModel(replace(resolve_weights("whisper-pocket", None), adapter=adapter))


def _merged(adapted: peft.PeftModel) -> transformers.WhisperForConditionalGeneration:
    return adapted.merge_and_unload().eval()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("everything")
    write_peft_adapter(_base(), folder, **EVERYTHING)
    return folder


@pytest.fixture
def adapter(everything: Path, tmp_path: Path) -> Path:
    """A copy of an adapter to change."""
    return Path(shutil.copytree(everything, tmp_path / "adapter"))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(ATTENTION, id="attention"),
        pytest.param(EVERYTHING, id="everything"),
        pytest.param({"r": 2, "target_modules": "all-linear", "init_lora_weights": "gaussian"}, id="all linears"),
        pytest.param({"r": 3, "target_modules": r".*decoder.*\.fc[12]", "lora_alpha": 1}, id="a pattern"),
    ],
)
def test_the_merged_weights_are_peft_s(options: dict[str, Any], tmp_path: Path):
    adapted = write_peft_adapter(_base(), tmp_path, **options)
    model = _opened(tmp_path)
    before, after = _base().model.state_dict(), _merged(adapted).model.state_dict()
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {file.name for file in model.source_files}
    changed = set()
    for name, info in model.tensors.items():
        found = model.read(name)
        assert (found.dtype, tuple(found.shape)) == (info.dtype, info.shape)
        torch.testing.assert_close(found.float(), after[name], rtol=0, atol=1e-6)
        changed |= set() if torch.equal(found.float(), before[name]) else {name}
    assert changed == {name for name in before if not torch.equal(before[name], after[name])}
    assert changed


def test_an_adapter_of_the_bare_model_is_merged_as_well(tmp_path: Path):
    """Its names lack one `model.`: base_model.model.encoder instead of base_model.model.model.encoder."""
    adapted = write_peft_adapter(_base().model, tmp_path, **ATTENTION)
    name = "encoder.layers.1.self_attn.q_proj.weight"
    assert torch.equal(_opened(tmp_path).read(name), adapted.merge_and_unload().state_dict()[name])


def test_an_adapter_alone_is_merged_into_the_base_that_is_given_with_it(everything: Path):
    weights = resolve_weights("my-whisper", str(everything), base=str(POCKET))
    family, model = open_model(weights)
    assert (family, weights.path, weights.adapter) == ("whisper", POCKET, everything)
    name = "encoder.conv1.weight"
    assert torch.equal(model.read(name), _opened(everything).read(name))


def test_the_older_format_serves_as_well(adapter: Path):
    name = "encoder.conv2.weight"
    expected = _opened(adapter).read(name)
    state = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(state, adapter / "adapter_model.bin")
    assert torch.equal(_opened(adapter).read(name), expected)


@pytest.mark.parametrize("beside", [False, True])
def test_the_source_computes_what_peft_does(*, beside: bool, tmp_path: Path):
    """`beside`: in its own folder transformers would find the adapter and load it, as peft is installed."""
    folder = Path(shutil.copytree(POCKET, tmp_path / "base"))
    adapter = folder if beside else tmp_path / "adapter"
    # peft's own convolution lacks the stride that transformers' Whisper asks for: it runs merged.
    merged = _merged(write_peft_adapter(_base(), adapter, **EVERYTHING))
    mel = torch.randn(1, 80, 600)
    with torch.inference_mode():
        expected = merged.get_encoder()(mel).last_hidden_state
        plain = _base().get_encoder()(mel).last_hidden_state
    model = _opened(adapter)
    write_weights(model, torch.float32, tmp_path / "weights.safetensors")
    source = TransformersWhisper(folder, tmp_path / "weights.safetensors", model._checkpoint, adapter=adapter)
    found = source.run("encoder", {"mel": mel.numpy()})["hidden"]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert np.abs(found - plain.numpy()).max() > 0.1


@pytest.mark.slow
def test_an_export_says_what_the_merged_model_says(tmp_path: Path):
    folder = Path(shutil.copytree(POCKET, tmp_path / "base"))
    adapted = write_peft_adapter(_base(), folder, **EVERYTHING)
    path = export_model(
        "my-whisper", weights=str(folder), formats=("onnx",), out=tmp_path / "artifacts", recordings=[SHORT]
    )
    content = open_artifact(path).content
    assert "adapter_model.safetensors" in content.source.files
    assert all(content.parity.results_equal.values())
    golden = content.recordings[0]
    audio = np.concatenate(list(open_audio(SHORT).blocks(16000)))
    features = transformers.WhisperFeatureExtractor.from_pretrained(POCKET)(
        audio, sampling_rate=16000, return_tensors="pt"
    )
    # Zero features behind the recording's end, as in openai-whisper.
    features.input_features[:, :, len(audio) // 160 :] = 0.0
    options = WhisperOptions.parse(golden.options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(POCKET)
    texts = []
    for model in (_merged(adapted), _base()):
        tokens = model.generate(features.input_features, language=options.language, task=options.task)
        texts.append(tokenizer.decode(tokens[0], skip_special_tokens=True).strip())
    assert golden.result["text"] == texts[0]
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"use_dora": True}, "use_dora: found True, supported is an adapter without it; merge it with peft"),
        ({"bias": "lora_only"}, "bias: found 'lora_only', supported is 'none'; merge it with peft"),
        ({"modules_to_save": ["layer_norm"]}, "modules_to_save: found ['layer_norm'], supported is an adapter without"),
        ({"modules_to_save": ["proj_out"]}, "modules_to_save: found ['proj_out']"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: found 'pissa', supported is one that leaves the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: found 'olora'"),
        ({"lora_bias": True}, "lora_bias: found True"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices: found [1, 2]"),
        ({"target_modules": ["embed_tokens"]}, "decoder.embed_tokens.lora_embedding_A: an adapter of an embedding"),
        ({"target_modules": ["proj_out"]}, "adapts proj_out.weight, which is tied to decoder.embed_tokens.weight"),
    ],
)
def test_what_peft_writes_and_is_not_merged_is_refused_by_name(options: dict[str, Any], told: str, tmp_path: Path):
    write_peft_adapter(_base(), tmp_path, **{**ATTENTION, **options})
    with pytest.raises(InputError) as caught:
        _opened(tmp_path)
    assert_one_line(caught.value, str(tmp_path), told)


@pytest.mark.parametrize(
    "config",
    [
        peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10),
        peft.IA3Config(target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"]),
        peft.LoHaConfig(target_modules=["q_proj"]),
        peft.VeraConfig(target_modules=["q_proj"]),
        peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_another_kind_of_adapter_is_named(config: peft.PeftConfig, tmp_path: Path):
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError) as caught:
        _opened(tmp_path)
    told = f"peft_type: found '{config.peft_type.value}', supported is 'LORA'; merge it with peft"
    assert_one_line(caught.value, "adapter_config.json", told)


def _change(folder: Path, changed: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / "adapter_model.safetensors")
    changed(state)
    save_file(state, folder / "adapter_model.safetensors")


_Q = "base_model.model.model.encoder.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda state: state.pop(_Q.format("B")), "q_proj.weight: expected lora_A and lora_B, found ['A']"),
        (lambda state: state.update({_Q.format("A"): torch.zeros(8, 99)}), "expected shapes ((8, 128), (128, 8))"),
        (
            lambda state: state.update({_Q.format("A").replace("layers.0", "layers.9"): torch.zeros(8, 128)}),
            "adapts encoder.layers.9.self_attn.q_proj.weight, which is no linear or convolution",
        ),
        (
            lambda state: state.update({_Q.format("A").replace("q_proj", "q_proj.x"): torch.zeros(8, 128)}),
            "which is no linear or convolution",
        ),
        (
            lambda state: state.update({"base_model.model.proj_out.weight": torch.zeros(2, 2)}),
            "proj_out.weight: expected lora_A or lora_B of a linear or convolution",
        ),
        (lambda state: state.clear() or state.update(x=torch.zeros(1)), "x: expected lora_A or lora_B"),
        (lambda state: state.clear(), "expected lora_A and lora_B tensors, found none"),
        (lambda state: state.update({_Q.format("B"): torch.zeros(0)}), "DeepSpeed's ZeRO-3 leaves out what it has not"),
        (lambda state: state.update({_Q.format("A"): torch.zeros(8, 128, dtype=torch.int8)}), "found torch.int8"),
        (
            lambda state: state.update({_Q.format("A").replace("model.model.model.", "model.model."): torch.zeros(1)}),
            "which are one; get the adapter again",
        ),
    ],
)
def test_tensors_of_another_model_are_refused(
    changed: Callable[[dict[str, torch.Tensor]], object], told: str, adapter: Path
):
    _change(adapter, changed)
    with pytest.raises(InputError) as caught:
        _opened(adapter)
    assert_one_line(caught.value, "adapter_model.safetensors", told)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("a_flag_of_tomorrow", True, "a_flag_of_tomorrow: found True, supported is an adapter without it"),
        ("rank_pattern", {"(": 2}, "rank_pattern: found '(', supported is a regular expression"),
        ("rank_pattern", 5, "rank_pattern: found 5, supported is numbers by pattern"),
        ("r", 0, "r: found 0"),
        ("lora_alpha", None, "lora_alpha: found None"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(key: str, value: object, told: str, adapter: Path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(InputError) as caught:
        _opened(adapter)
    assert_one_line(caught.value, "adapter_config.json", told)


def test_options_of_tomorrow_that_are_off_do_not_matter(adapter: Path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    off = {"use_tomorrow": False, "tomorrow_config": None, "tomorrow_list": [], "tomorrow_dict": {}}
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **off}))
    assert _opened(adapter).tensors


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_half_an_adapter_is_refused(name: str, adapter: Path):
    (adapter / name).unlink()
    with pytest.raises(InputError) as caught:
        _opened(adapter)
    assert_one_line(caught.value, name)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("sed-pocket", "a PEFT adapter, which this family has none of"),
        ("parakeet-pocket", f"a PEFT adapter, and peft adapts no .nemo file as {POCKET_NEMO.name} is"),
    ],
)
def test_a_model_that_peft_does_not_adapt_is_named(model: str, told: str, adapter: Path):
    with pytest.raises(InputError) as caught:
        open_model(replace(resolve_weights(model, None), adapter=adapter))
    assert_one_line(caught.value, str(adapter), told)
