"""What current NeMo writes into a model_config.yaml: local attention, no limit of symbols, hybrids, every parameter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parakeet_checkpoints import POCKET_NEMO, assert_one_line, changed_nemo, pocket_config, set_key

from export.families.parakeet_tdt.checkpoint import ParakeetCheckpoint
from export.families.parakeet_tdt.model import ParakeetModel
from export.families.parakeet_tdt.nemo_config import NemoConfig
from export.weights import resolve_weights
from runtime.errors import InputError

# Taken from the released package: names of parameters and their defaults.
SIGNATURES: dict[str, dict[str, Any]] = {
    name: parameters
    for name, parameters in json.loads(Path(__file__).with_name("nemo_signatures.json").read_text()).items()
    if name != "source"
}


def _read(**changes: object) -> NemoConfig:
    config = pocket_config()
    for key, value in changes.items():
        set_key(config, key.replace("__", "."), value)
    return NemoConfig(config, "x.nemo")


def test_a_configuration_that_states_every_parameter_of_nemo_3_is_read():
    config = pocket_config()
    stated = _read()
    for section, parameters in SIGNATURES.items():
        for name, default in parameters.items():
            target: Any = config
            for part in section.split("."):
                target = target[part]
            # Where nothing is said, NeMo takes the default; prednet and jointnet have theirs in the code.
            if name not in target and "." not in section:
                target[name] = default
    read = NemoConfig(config, "x.nemo")
    assert (read.dims, read.frontend, read.settings) == (stated.dims, stated.frontend, stated.settings)


@pytest.mark.parametrize(
    ("section", "name"),
    [(section, name) for section, parameters in SIGNATURES.items() for name in parameters],
)
def test_every_parameter_of_nemo_3_is_known_by_name(section: str, name: str):
    config = pocket_config()
    set_key(config, f"{section}.{name}", "no such value")
    try:
        NemoConfig(config, "x.nemo")
    except InputError as error:
        assert "not known here" not in str(error)  # noqa: PT017 - either outcome is right but for this one


@pytest.mark.parametrize("section", sorted(SIGNATURES))
def test_a_key_of_tomorrow_is_told_with_a_way_out(section: str):
    config = pocket_config()
    set_key(config, f"{section}.tomorrow", {"a": 1})
    with pytest.raises(InputError) as caught:
        NemoConfig(config, "x.nemo")
    told = f"x.nemo: {section}.tomorrow: {{'a': 1}}: not known here"
    assert_one_line(caught.value, told, "take it out of model_config.yaml and pack the .nemo again")


def test_local_attention_is_read_as_full_attention(tmp_path: Path):
    """Its tensors are named and shaped as those of full attention: NeMo loads the one's into the other."""

    def localise(config: dict[str, Any]) -> None:
        config["encoder"] |= {"self_attention_model": "rel_pos_local_attn", "att_context_size": [128, 128]}
        config["encoder"] |= {"global_tokens": 0, "global_tokens_spacing": 1, "global_attn_separate": False}

    path = changed_nemo(tmp_path / "local.nemo", localise)
    local, full = ParakeetModel(resolve_weights("mine", str(path))), ParakeetCheckpoint.from_nemo(POCKET_NEMO)
    assert (local.dims, local.settings) == (full.dims.model_dump(), full.settings.model_dump(mode="json"))
    assert local.tensors == full.tensors
    assert all(torch.equal(local.read(name), full.read(name)) for name in list(full.tensors)[:40])


@pytest.mark.parametrize("context", [[128, 128], [[256, 256]], [0, 64], [-1, 70]])
def test_local_attention_is_said(context: list[Any]):
    (note,) = _read(encoder__self_attention_model="rel_pos_local_attn", encoder__att_context_size=context).notes
    sides = context[0] if isinstance(context[0], list) else context
    assert f"rel_pos_local_attn with att_context_size {sides}: exported with full attention" in note
    assert "up to 120 s; longer ones go through the encoder in windows" in note


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder__att_context_size": [-1, -1]}, "encoder.att_context_size: found [-1, -1], supported is two numbers"),
        ({"encoder__att_context_size": None}, "encoder.att_context_size: found None"),
        ({"encoder__att_context_size": [128]}, "encoder.att_context_size: found [128]"),
        (
            {"encoder__att_context_size": [128, 128], "encoder__global_tokens": 1},
            "encoder.global_tokens: found 1, supported is 0",
        ),
        (
            {"encoder__att_context_size": [128, 128], "encoder__att_context_style": "chunked_limited"},
            "encoder.att_context_style: found chunked_limited",
        ),
    ],
)
def test_local_attention_that_needs_more_is_refused_by_name(changes: dict[str, object], told: str):
    with pytest.raises(InputError) as caught:
        _read(encoder__self_attention_model="rel_pos_local_attn", **changes)
    assert_one_line(caught.value, told)


@pytest.mark.parametrize(
    ("decoding", "expected", "noted"),
    [
        # NeMo 3.0.0: `greedy.get('max_symbols', None) or greedy.get('max_symbols_per_step', None)`, and label looping
        # with CUDA graphs sets None to 10.
        ({"greedy": {"max_symbols": None}}, 10, ""),
        ({"greedy": {"max_symbols_per_step": None}}, 10, ""),
        ({"greedy": {}}, 10, ""),
        ({"greedy": None}, 10, ""),
        ({"greedy": {"max_symbols": None, "max_symbols_per_step": 4}}, 4, ""),
        ({"greedy": {"max_symbols": 7, "max_symbols_per_step": 4}}, 7, ""),
        ({"greedy": {"max_symbols": None, "use_cuda_graph_decoder": True}}, 10, ""),
        ({"greedy": {"max_symbols": None, "use_cuda_graph_decoder": False}}, 1000, "max_symbols is null, no limit"),
        ({"greedy": {"max_symbols": None}, "strategy": "greedy"}, 1000, "max_symbols is null, no limit"),
        ({"greedy": {"max_symbols": 5}, "strategy": "greedy"}, 5, ""),
        (
            {"strategy": "malsd_batch", "greedy": {"max_symbols": None}},
            10,
            "decoding.strategy malsd_batch is not honoured: the search is greedy",
        ),
        ({"greedy": {"ngram_lm_model": "lm.nemo"}}, 10, "ngram_lm_model is not honoured"),
        ({"greedy": {"boosting_tree": {"key_phrases_list": ["Atlas"]}}}, 10, "boosting_tree is not honoured"),
        ({"greedy": {"boosting_tree": {"model_path": None, "context_score": 1.0}}}, 10, ""),
    ],
)
def test_the_search_is_nemo_s_or_what_is_missing_is_said(decoding: dict[str, Any], expected: int, noted: str):
    config = pocket_config()
    config["decoding"] |= decoding
    read = NemoConfig(config, "x.nemo")
    assert read.settings.max_symbols == expected
    assert len(read.notes) == bool(noted)
    assert noted in "".join(read.notes)


def test_the_loss_says_that_a_model_is_tdt_as_in_nemo():
    """`change_decoding_strategy` merges NeMo's defaults into a configuration: model_type rnnt, no durations."""
    read = _read(decoding__model_type="rnnt", decoding__durations=[])
    assert read.settings.durations == (0, 1, 2, 3, 4)
    config = pocket_config()
    del config["decoding"]["model_type"], config["decoding"]["durations"], config["model_defaults"]["tdt_durations"]
    assert NemoConfig(config, "x.nemo").settings.durations == (0, 1, 2, 3, 4)


def test_of_a_hybrid_the_tdt_head_is_taken_and_said(tmp_path: Path):
    """As parakeet-tdt_ctc-110m and -0.6b-ja are: a CTC head beside, with a decoding of its own."""

    def hybrid(config: dict[str, Any]) -> None:
        config["target"] = "nemo.collections.asr.models.hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel"
        config["aux_ctc"] = {
            "ctc_loss_weight": 0.3,
            "use_cer": False,
            "ctc_reduction": "mean_batch",
            "decoder": {
                "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
                "feat_in": 112,
                "num_classes": 192,
                "vocabulary": [*config["joint"]["vocabulary"]],
            },
            "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 3}},
        }
        del config["decoding"]["model_type"]

    def head(state: dict[str, torch.Tensor]) -> None:
        state["ctc_decoder.decoder_layers.0.weight"] = torch.zeros(193, 112, 1)
        state["ctc_decoder.decoder_layers.0.bias"] = torch.zeros(193)

    model = ParakeetModel(resolve_weights("mine", str(changed_nemo(tmp_path / "hybrid.nemo", hybrid, head))))
    plain = ParakeetCheckpoint.from_nemo(POCKET_NEMO)
    assert (model.dims, model.settings) == (plain.dims.model_dump(), plain.settings.model_dump(mode="json"))
    assert all(torch.equal(model.read(name), plain.read(name)) for name in plain.tensors)
    assert model.tensors.keys() == plain.tensors.keys()
    assert model.notes == ("hybrid model: its TDT head is exported, its CTC head is left out",)
