"""Parakeet-CTC: checkpoints of every kind, and graphs that compute what transformers' ParakeetForCTC does."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from ctc_checkpoints import N_VOCAB, ctc_head, ctc_nemo, hybrid_nemo, random_network, write_folder
from parakeet_checkpoints import POCKET_NEMO, assert_one_line

from export.families import open_model
from export.families.parakeet_ctc.checkpoint import CtcCheckpoint
from export.families.parakeet_ctc.graphs import ctc_graphs
from export.families.parakeet_ctc.modules import ParakeetCtc
from export.families.parakeet_ctc.standin import RandomCtc
from export.fastconformer.graphs import Constants
from export.registry import MODELS
from export.weights import resolve_weights
from runtime.errors import InputError
from runtime.families.parakeet_ctc.search import ctc_tokens, frame_choices
from runtime.fastconformer.options import FastConformerOptions
from runtime.fastconformer.tokenizer import SubwordTokenizer

HEAD = "decoder.decoder_layers.0"


def computed(checkpoint: CtcCheckpoint | RandomCtc, audio: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    """Return features and their number, logits and their number by the graphs' modules."""
    with torch.device("meta"):
        model = ParakeetCtc(checkpoint.dims)
    model.load_state_dict({name: checkpoint.read(name) for name in checkpoint.tensors}, assign=True)
    constants = Constants(checkpoint.window, checkpoint.filters)
    graphs = ctc_graphs(model, constants, checkpoint.dims, checkpoint.frontend)
    with torch.inference_mode():
        features, n_features = graphs["frontend"].module(audio, torch.tensor(lengths))
        return [features, n_features, *graphs["encoder"].module(features, n_features)]


@pytest.mark.parametrize(("xscaling", "least"), [(1, 4), (0, 1)])
def test_logits_tokens_and_text_are_those_of_transformers(tmp_path: Path, xscaling: int, least: int):
    """Of a batch of two lengths, from the sound on: its own feature extractor, `generate`, `decode`."""
    source = random_network(seed=3, scale_input=bool(xscaling))
    family, _ = open_model(resolve_weights("mine", str(write_folder(tmp_path, source))))
    assert family == "parakeet_ctc"
    checkpoint = CtcCheckpoint.from_transformers(tmp_path)
    assert (checkpoint.dims.n_vocab, checkpoint.dims.blank, checkpoint.dims.xscaling) == (64, 64, xscaling)
    lengths = [48_000, 30_400]
    audio = 0.1 * torch.randn(2, max(lengths), generator=torch.Generator().manual_seed(0))
    # Louder and softer, or every frame would be like the last.
    audio *= 1 + torch.sin(torch.arange(max(lengths)) / 2500)
    _, _, logits, n_frames = computed(checkpoint, audio, lengths)
    extractor = transformers.ParakeetFeatureExtractor(feature_size=80)
    sounds = [row[:length].numpy() for row, length in zip(audio, lengths, strict=True)]
    inputs = extractor(sounds, sampling_rate=16000, return_tensors="pt", padding=True)
    with torch.inference_mode():
        ids = source.generate(**inputs)
        expected = source(**inputs).logits
    theirs = transformers.ParakeetTokenizer(tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="<pad>")
    assert theirs.pad_token_id == N_VOCAB
    tokenizer = SubwordTokenizer(tmp_path / "tokenizer.json", N_VOCAB)
    for row, length in enumerate(n_frames.tolist()):
        found = logits[row, :length]
        torch.testing.assert_close(found, expected[row, :length], rtol=2e-3, atol=2e-3)
        assert (ids[row, length:] == N_VOCAB).all()
        assert not logits[row, length:].any()
        tokens = ctc_tokens(frame_choices(found.numpy()), tokenizer, FastConformerOptions())
        collapsed = torch.unique_consecutive(ids[row, :length])
        collapsed = collapsed[collapsed != N_VOCAB]
        assert len(collapsed) >= least
        assert [token.token for token in tokens] == collapsed.tolist()
        # NeMo drops the space before a mark.
        text = re.sub(r" ([.,?])", r"\1", theirs.decode(ids[row]))
        assert tokenizer.decode([token.token for token in tokens]) == text


def test_a_head_of_lower_precision_has_logits_of_float32():
    checkpoint = RandomCtc(_small())
    model = ParakeetCtc(checkpoint.dims).to(torch.bfloat16)
    model.load_state_dict({name: checkpoint.read(name).bfloat16() for name in checkpoint.tensors})
    graphs = ctc_graphs(model, Constants(checkpoint.window, checkpoint.filters), checkpoint.dims, checkpoint.frontend)
    logits, _ = graphs["encoder"].module(torch.randn(1, 16, 100), torch.tensor([100]))
    assert logits.dtype == torch.float32
    assert graphs["encoder"].outputs[0].dtype == "float32"
    assert {name: graph.precision for name, graph in graphs.items()} == {"encoder": "bf16", "frontend": "fp32"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pad_token_id": 0}, "pad_token_id: found 0, supported is vocab_size - 1, 64"),
        ({"vocab_size": 0}, "vocab_size: found 0"),
        ({"encoder_config": None}, "encoder_config: found None"),
    ],
)
def test_a_folder_that_is_another_network_is_refused_by_name(tmp_path: Path, changes: dict[str, object], told: str):
    path = write_folder(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError) as caught:
        CtcCheckpoint.from_transformers(tmp_path)
    assert_one_line(caught.value, told)


# --- .nemo ---


def test_a_nemo_of_ctc_alone_is_read(tmp_path: Path):
    family, model = open_model(resolve_weights("mine", str(ctc_nemo(tmp_path / "ctc.nemo"))))
    assert (family, model.notes) == ("parakeet_ctc", ())
    assert (model.dims["n_vocab"], model.settings["tokenizer_file"]) == (192, "tokenizer.model")
    head = ctc_head()
    assert torch.equal(model.read(f"{HEAD}.weight"), head["decoder_layers.0.weight"][:, :, 0])
    assert torch.equal(model.read(f"{HEAD}.bias"), head["decoder_layers.0.bias"])


def test_of_a_hybrid_the_head_that_is_asked_for_is_taken(tmp_path: Path):
    path = str(hybrid_nemo(tmp_path / "hybrid.nemo"))
    usual, asked = (open_model(resolve_weights("mine", path, head=head)) for head in (None, "tdt"))
    assert usual[0] == asked[0] == "parakeet_tdt"
    family, model = open_model(resolve_weights("mine", path, head="ctc"))
    assert family == "parakeet_ctc"
    assert model.notes == ("hybrid model: its CTC head is exported, its transducer is left out",)
    assert torch.equal(model.read(f"{HEAD}.bias"), ctc_head()["decoder_layers.0.bias"])
    alone = CtcCheckpoint.from_nemo(ctc_nemo(tmp_path / "ctc.nemo"))
    assert model.tensors == alone.tensors
    assert all(torch.equal(model.read(name), alone.read(name)) for name in alone.tensors)


def test_a_head_that_states_no_classes_has_those_of_its_vocabulary(tmp_path: Path):
    checkpoint = CtcCheckpoint.from_nemo(hybrid_nemo(tmp_path / "hybrid.nemo", num_classes=-1))
    assert checkpoint.dims.n_vocab == 192


@pytest.mark.parametrize(
    ("decoder", "told"),
    [
        ({"num_classes": 0}, "aux_ctc.decoder.num_classes: found 0"),
        ({"num_classes": -1, "vocabulary": None}, "aux_ctc.decoder.num_classes: found -1"),
        ({"num_classes": 100}, "expected 100 pieces, found 192"),
        ({"feat_in": 64}, "aux_ctc.decoder.feat_in: found 64, supported is 112 as encoder.d_model"),
        ({"add_blank": False}, "aux_ctc.decoder.add_blank: found False, supported is True"),
        (
            {"_target_": "nemo.x.LSTMDecoder"},
            "decoder._target_: found LSTMDecoder, supported is ConvASRDecoder",
        ),
        ({"tomorrow": 1}, "aux_ctc.decoder.tomorrow: 1: not known here"),
    ],
)
def test_a_head_of_another_kind_is_refused_by_name(tmp_path: Path, decoder: dict[str, object], told: str):
    path = hybrid_nemo(tmp_path / "hybrid.nemo", **decoder)
    with pytest.raises(InputError) as caught:
        CtcCheckpoint.from_nemo(path)
    assert_one_line(caught.value, told)


@pytest.mark.parametrize(
    ("model", "weights", "head", "told"),
    [
        (
            "mine",
            str(POCKET_NEMO),
            "ctc",
            "of parakeet_ctc, found a .nemo file of EncDecRNNTBPEModel",
        ),
        ("mine", str(POCKET_NEMO), "rnnt", "--head: expected one of ctc, tdt, found 'rnnt'"),
        ("parakeet-ctc-0.6b", str(POCKET_NEMO), None, "of parakeet_ctc, found a .nemo file of EncDecRNNTBPEModel"),
        ("whisper-pocket", None, "ctc", 'expected a checkpoint of parakeet_ctc, found model_type "whisper"'),
        ("parakeet-tdt-0.6b-v2", "random", "ctc", "--head ctc: parakeet-tdt-0.6b-v2 has one head; leave it out"),
        ("parakeet-tdt_ctc-110m", "random", "rnnt", "--head rnnt: parakeet-tdt_ctc-110m has tdt and ctc; leave it out"),
    ],
)
def test_a_head_that_is_not_there_is_told(model: str, weights: str | None, head: str | None, told: str):
    with pytest.raises(InputError) as caught:
        open_model(resolve_weights(model, weights, head=head))
    assert_one_line(caught.value, told)


def test_a_tdt_head_is_not_looked_for_in_a_ctc_model(tmp_path: Path):
    with pytest.raises(InputError, match=r"of parakeet_tdt, found a \.nemo file of EncDecCTCModelBPE"):
        open_model(resolve_weights("mine", str(ctc_nemo(tmp_path / "ctc.nemo")), head="tdt"))


# --- the registry, random weights ---


def _small() -> dict[str, int]:
    return {**MODELS["parakeet-pocket"].dims, "n_mels": 16, "n_layers": 2, "d_model": 32, "d_ff": 64}


def test_the_entry_is_as_large_as_its_file_and_as_the_network_of_transformers():
    """The .nemo has 2.44 GB, as the hub shows it."""
    entry = MODELS["parakeet-ctc-0.6b"]
    encoder = {"num_mel_bins": 80, "num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 8}
    with torch.device("meta"):
        network = transformers.ParakeetForCTC(transformers.ParakeetCTCConfig(vocab_size=1025, encoder_config=encoder))
    assert entry.parameters == network.num_parameters()
    assert 4 * entry.parameters == pytest.approx(2.44e9, rel=3e-3)
    family, model = open_model(resolve_weights(entry.name, "random"))
    assert (family, model.dims) == ("parakeet_ctc", dict(entry.dims))
    # Batch normalisation is folded into the convolution before it.
    assert sum(prod(info.shape) for info in model.tensors.values()) == entry.parameters - 24 * 1024 * 2


@pytest.mark.parametrize("name", ["parakeet-tdt_ctc-110m", "parakeet-tdt_ctc-0.6b-ja"])
def test_hybrids_of_the_registry_have_a_ctc_head_at_random_too(name: str):
    family, model = open_model(resolve_weights(name, "random", head="ctc"))
    assert family == "parakeet_ctc"
    assert model.dims == {key: size for key, size in MODELS[name].dims.items() if key in model.dims}
    assert model.tensors[f"{HEAD}.weight"].shape == (model.dims["n_vocab"] + 1, model.dims["d_model"])
    assert open_model(resolve_weights(name, "random"))[0] == "parakeet_tdt"


def test_random_weights_emit_a_few_tokens_a_second():
    checkpoint = RandomCtc(_small())
    audio = 0.1 * torch.randn(1, 160_000, generator=torch.Generator().manual_seed(0))
    _, _, logits, _ = computed(checkpoint, audio, [160_000])
    ids = logits[0].argmax(dim=1).numpy()
    emitted = np.count_nonzero((ids != checkpoint.dims.blank) & (np.diff(ids, prepend=-1) != 0))
    assert 1 < emitted / 10 < 7


def test_a_nemo_takes_no_other_tokenizer(tmp_path: Path):
    weights = replace(resolve_weights("mine", str(ctc_nemo(tmp_path / "ctc.nemo"))), tokenizer=tmp_path)
    with pytest.raises(InputError, match=r"ctc.nemo has one of its own; give the .nemo file alone"):
        open_model(weights)
