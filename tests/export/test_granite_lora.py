"""LoRA adapters in peft's layout, merged by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from granite_checkpoints import write_adapter, write_granite_checkpoint
from parakeet_checkpoints import assert_one_line
from safetensors.torch import load_file, save_file
from torch.nn import functional

from export.families.granite_speech.checkpoint import GraniteCheckpoint
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
    checkpoint = GraniteCheckpoint(folder)
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
    names = {file.name for file in GraniteCheckpoint(original).files}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names


def test_a_checkpoint_that_needs_its_adapter_is_refused_without(folder: Path):
    (folder / "adapter_config.json").unlink()
    with pytest.raises(InputError, match="expected adapter_config") as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value, "get them from the model's repository on the hub")
    write_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="found neither") as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value, "adapter_model.safetensors or adapter_model.bin")


def test_an_adapter_in_torch_s_format_serves_as_well(folder: Path):
    name = NAMED.format(1, "self_attn.v_proj")
    expected = GraniteCheckpoint(folder).read(name)
    state = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(state, folder / "adapter_model.bin")
    assert torch.equal(GraniteCheckpoint(folder).read(name), expected)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("peft_type", "IA3"),
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 2]]),
        ("r", 0),
        ("lora_alpha", "16"),
        ("alpha_pattern", {"q_proj": -1}),
        ("rank_pattern", ["q_proj"]),
    ],
)
def test_an_adapter_with_other_options_is_refused_by_name(option: str, value: object, folder: Path):
    write_adapter(folder, **{option: value})
    with pytest.raises(InputError) as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value, "adapter_config.json", "supported is")


_A, _B = (f"base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_{factor}.weight" for factor in "AB")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({_A: torch.zeros(4, 95)}, "expected shapes ((4, 96), (96, 4))"),
        ({_A: torch.zeros(5, 96), _B: torch.zeros(96, 5)}, "expected shapes"),
        ({_B: None}, "expected lora_A and lora_B for a linear, found ['A']"),
        (
            {_A.replace("layers.0", "layers.9"): torch.zeros(4, 96)},
            "layers.9.self_attn.q_proj.weight, which is no linear",
        ),
        ({_A.replace("self_attn.q_proj", "input_layernorm"): torch.zeros(4, 96)}, "which is no linear"),
        ({"base_model.model.lm_head.weight": torch.zeros(384, 96)}, "expected lora_A or lora_B of a linear"),
        ({_A.replace("lora_A", "lora_embedding_A"): torch.zeros(4)}, "expected lora_A or lora_B of a linear"),
        (None, "expected lora_A and lora_B tensors, found none"),
    ],
)
def test_an_adapter_of_another_network_is_refused(
    changes: dict[str, torch.Tensor | None] | None, told: str, folder: Path
):
    path = folder / "adapter_model.safetensors"
    state: dict[str, torch.Tensor | None] = {} if changes is None else {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)
    with pytest.raises(InputError) as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value, told)


def test_an_adapter_beside_a_checkpoint_counts_even_where_config_json_is_silent(folder: Path):
    """As in transformers, which loads what lies there."""
    config = json.loads((folder / "config.json").read_text())
    config["has_lora_adapter"] = False
    (folder / "config.json").write_text(json.dumps(config))
    base = load_file(folder / "model.safetensors")
    name = NAMED.format(0, "self_attn.q_proj")
    assert not torch.equal(GraniteCheckpoint(folder).read(name), base[name].float())
