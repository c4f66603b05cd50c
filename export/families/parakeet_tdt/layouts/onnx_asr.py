"""The layout of onnx-asr's `nemo-conformer-tdt`: encoder, decoder with joint net, vocabulary, configuration."""

from __future__ import annotations

import json
from pathlib import Path

from export.families.parakeet_tdt.layouts.nemo_modules import DecoderJoint
from export.families.parakeet_tdt.layouts.network import (
    NetworkSource,
    check_network,
    encoder_graph,
    int32,
    numbered_pieces,
    state_specs,
    write_graphs,
)
from export.graphs import GraphDefinition
from runtime.errors import InputError
from runtime.manifest import TensorSpec

# onnx-asr fetches from a hub what is named like a graph, with one letter and `data` behind it.
WEIGHTS_NAME = "encoder-model.onnx.data"
_MELS = (80, 128)


def check(source: NetworkSource) -> None:
    """Raise InputError for a network that onnx-asr cannot run as it was trained."""
    check_network(source, "onnx-asr")
    if source.dims.n_mels not in _MELS:
        raise InputError(
            f"layout onnx-asr: expected 80 or 128 mels, found {source.dims.n_mels}; onnx-asr computes no other features"
        )


def write(source: NetworkSource, folder: Path) -> None:
    """Write everything but the weights, which lie in `folder`.

    Graphs: `encoder-model` audio_signal f32 [B, n_mels, T], length i64 [B] -> outputs f32 [B, d_model, T'],
    encoded_lengths i64 [B]; `decoder_joint-model` encoder_outputs f32 [B, d_model, 1], targets i32 [B, 1],
    target_length i32 [B], input_states_1, input_states_2 f32 [L, B, H] -> outputs f32 [B, 1, 1, V + 1 + D],
    prednet_lengths i32 [B], output_states_1, output_states_2.
    """
    dims = source.dims
    network = source.network()
    states = state_specs(dims)
    decoder = GraphDefinition(
        "decoder_joint-model",
        DecoderJoint(network),
        (
            TensorSpec(name="encoder_outputs", dtype="float32", shape=("B", dims.d_model, 1)),
            TensorSpec(name="targets", dtype="int64", shape=("B", 1)),
            TensorSpec(name="target_length", dtype="int64", shape=("B",)),
            *states("input_states_1", "input_states_2"),
        ),
        (
            TensorSpec(name="outputs", dtype="float32", shape=("B", 1, 1, dims.n_vocab + 1 + dims.n_durations)),
            TensorSpec(name="prednet_lengths", dtype="int64", shape=("B",)),
            *states("output_states_1", "output_states_2"),
        ),
        {"B": 1},
    )
    write_graphs([encoder_graph("encoder-model", network, dims), decoder], folder / WEIGHTS_NAME)
    int32(folder / "decoder_joint-model.onnx", ("targets", "target_length", "prednet_lengths"))
    (folder / "vocab.txt").write_text(numbered_pieces(source.pieces), encoding="utf-8")
    config = {
        "model_type": "nemo-conformer-tdt",
        "features_size": dims.n_mels,
        "subsampling_factor": dims.subsampling_factor,
        "max_tokens_per_step": source.settings.max_symbols,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
