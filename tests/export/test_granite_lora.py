"""LoRA adapters of a Granite Speech, merged by hand and by peft; what a general adapter is refused for: test_lora."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from granite_checkpoints import INSTRUCTIONS, write_adapter, write_granite_checkpoint
from parakeet_checkpoints import assert_one_line
from peft_adapters import write_peft_adapter
from safetensors.torch import load_file
from torch.nn import functional

from export.families.granite_speech.checkpoint import GraniteCheckpoint, graph_name
from export.families.granite_speech.model import GraniteModel
from export.families.granite_speech.source import TransformersGranite
from export.pipeline import write_weights
from export.weights import resolve_weights
from runtime.errors import InputError

NAMED = "language_model.model.layers.{}.{}.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_granite_checkpoint(tmp_path_factory.mktemp("lora") / "original", adapter=True, dtype=torch.bfloat16)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    for file in original.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 8 / 4),
        ({"rank": 3, "alpha": 5.0}, 5 / 3),
        ({"prefix": "base_model.model.model.language_model."}, 8 / 4),
        ({"use_rslora": True}, 8 / math.sqrt(4)),
        ({"alpha_pattern": {"q_proj": 6.0, "v_proj": 6.0}}, 6 / 4),
        ({"rank_pattern": {r".*\.self_attn\.[qv]_proj": 4}, "r": 64}, 8 / 4),
        ({"targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")}, 8 / 4),
    ],
)
def test_a_merged_linear_computes_the_linear_and_its_adapter(options: dict[str, Any], scale: float, folder: Path):
    adapter = write_adapter(folder, **options)
    base = load_file(folder / "model.safetensors")
    checkpoint = GraniteCheckpoint(folder, adapter=folder)
    adapted = {name.rpartition(".lora_")[0] for name in adapter}
    assert len(adapted) == 2 * len(options.get("targets", "qv"))
    for module in adapted:
        name = "language_model.model.layers." + module.rpartition("layers.")[2] + ".weight"
        a, b = (adapter[f"{module}.lora_{factor}.weight"] for factor in "AB")
        weight = base[name].float()
        x = torch.randn(3, weight.shape[1])
        expected = functional.linear(x, weight) + scale * functional.linear(functional.linear(x, a), b)
        merged = checkpoint.read(name)
        assert merged.dtype == checkpoint.tensors[name].dtype == torch.float32
        torch.testing.assert_close(functional.linear(x, merged), expected, rtol=1e-5, atol=1e-5)
    for name in ("encoder.input_linear.weight", "language_model.model.norm.weight"):
        assert torch.equal(checkpoint.read(name), base[name])


def test_the_adapter_s_files_are_told(original: Path):
    names = {file.name for file in GraniteCheckpoint(original, adapter=original).files}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names


TARGETS = ["q_proj", "v_proj", "to_kv", "up_conv", "down_conv", "projector.linear"]


def _source(folder: Path) -> transformers.GraniteSpeechForConditionalGeneration:
    return transformers.GraniteSpeechForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def test_an_adapter_of_peft_is_merged_as_peft_does_and_the_source_adds_it(tmp_path: Path):
    folder = write_granite_checkpoint(tmp_path / "base")
    adapted = write_peft_adapter(_source(folder), tmp_path / "adapter", r=4, target_modules=TARGETS, lora_alpha=32)
    model = GraniteModel(replace(resolve_weights("granite", str(folder)), adapter=tmp_path / "adapter"))
    merged = adapted.merge_and_unload().eval()
    after, before = ({graph_name(n): t for n, t in m.state_dict().items()} for m in (merged, _source(folder)))
    changed = set()
    for name in model.tensors:
        if "depth_conv" in name:
            continue  # folded with its normalisation
        found, expected = model.read(name), after[name].view(model.tensors[name].shape)
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-6)
        changed |= set() if torch.equal(before[name], after[name]) else {name}
    assert {next(target for target in TARGETS if target in name) for name in changed} == set(TARGETS)

    weights = tmp_path / "weights.safetensors"
    write_weights(model, torch.float32, weights)
    source = TransformersGranite(folder, weights, model._checkpoint, adapter=tmp_path / "adapter")
    samples = torch.randn(16000)
    text = INSTRUCTIONS[0]
    tokens = source.generate(samples, text, 12)
    unadapted = TransformersGranite(folder, weights, model._checkpoint).generate(samples, text, 12)
    source.model = merged
    assert tokens == source.generate(samples, text, 12) != unadapted

    graphs = {name: graph.module for name, graph in model.graphs(torch.float32, weights).items()}
    ids = torch.tensor([[5, 200, 17, 63, 41]])
    with torch.inference_mode():
        logits, *_ = graphs["prefill"](graphs["embed"](ids), torch.tensor([5]))
        torch.testing.assert_close(logits * 8, merged(input_ids=ids).logits[:, -1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "tied", "told"),
    [
        ({"target_modules": ["lm_head"]}, True, "adapts language_model.lm_head.weight, which is tied to"),
        ({"target_modules": ["lm_head"]}, False, "lm_head.base_layer.weight: a layer of the base"),
        (
            {"target_modules": ["depth_conv.conv"], "r": 128},
            False,
            "or of a convolution in groups, which is not supported",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(options: dict[str, Any], *, tied: bool, told: str, tmp_path: Path):
    write_granite_checkpoint(tmp_path, tied=tied)
    write_peft_adapter(_source(tmp_path), tmp_path, **options)
    with pytest.raises(InputError) as caught:
        GraniteModel(resolve_weights("granite", str(tmp_path)))
    assert_one_line(caught.value, "adapter_model.safetensors", told)


def test_a_checkpoint_whose_adapter_may_be_lost_is_refused_with_both_ways_out(folder: Path):
    (folder / "adapter_config.json").unlink()
    with pytest.raises(InputError, match="expected adapter_config") as caught:
        GraniteModel(resolve_weights("granite", str(folder)))
    assert_one_line(
        caught.value,
        "if the adapter is merged into the weights, set has_lora_adapter to false in config.json",
        "else get both files from the model's repository",
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "has_lora_adapter": False}))
    assert GraniteModel(resolve_weights("granite", str(folder))).notes == ()


def test_a_whole_repository_without_an_adapter_is_taken_as_merged_and_says_so(folder: Path):
    fetched = replace(resolve_weights("granite", str(folder)), repo="someone/granite", revision="0" * 40, adapter=None)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="found not both"):
        GraniteModel(fetched)
    (folder / "adapter_config.json").unlink()
    model = GraniteModel(fetched)
    assert [note for note in model.notes if "has_lora_adapter" in note and "merged" in note]
    base = load_file(folder / "model.safetensors")
    name = NAMED.format(0, "self_attn.q_proj")
    assert torch.equal(model.read(name), base[name])


def test_an_adapter_beside_a_checkpoint_counts_even_where_config_json_is_silent(folder: Path):
    """As in transformers, which loads what lies there."""
    config = json.loads((folder / "config.json").read_text())
    config["has_lora_adapter"] = False
    (folder / "config.json").write_text(json.dumps(config))
    base = load_file(folder / "model.safetensors")
    name = NAMED.format(0, "self_attn.q_proj")
    model = GraniteModel(resolve_weights("granite", str(folder)))
    assert not torch.equal(model.read(name), base[name].float())
