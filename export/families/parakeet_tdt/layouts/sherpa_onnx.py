"""The layout of sherpa-onnx's NeMo transducers: encoder, decoder, joiner, tokens, and metadata in the encoder.

`bpe.vocab` has the pieces with their scores: what sherpa-onnx spells hotwords by (`modeling_unit="bpe"`).

Two things differ from NeMo inside sherpa-onnx, whatever is exported; docs/run.md says what they cost: the centres of
its frames lie half a hop later (a hop / 2 of silence before a recording makes them equal), and a frame emits at most 5
symbols.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from export.families.parakeet_tdt.layouts.nemo_modules import Decoder, Joiner
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
from runtime.manifest import TensorSpec

WEIGHTS_NAME = "encoder.weights"


def check(source: NetworkSource) -> None:
    """Raise InputError for a network that sherpa-onnx cannot run as it was trained."""
    check_network(source, "sherpa-onnx")


def write(source: NetworkSource, folder: Path) -> None:
    """Write everything but the weights, which lie in `folder`.

    Graphs: `encoder` as onnx-asr's; `decoder` targets i32 [B, 1], target_length i32 [B], states f32 [L, B, H] twice
    -> outputs f32 [B, H, 1], prednet_lengths i32 [B], next states twice; `joiner` encoder_outputs f32 [B, d_model, 1],
    decoder_outputs f32 [B, H, 1] -> outputs f32 [B, 1, 1, V + 1 + D]. sherpa-onnx goes by their order, not by names.
    """
    dims = source.dims
    network = source.network()
    states = state_specs(dims)
    predicted = ("B", dims.pred_hidden, 1)
    decoder = GraphDefinition(
        "decoder",
        Decoder(network),
        (
            TensorSpec(name="targets", dtype="int64", shape=("B", 1)),
            TensorSpec(name="target_length", dtype="int64", shape=("B",)),
            *states("states_1", "states_2"),
        ),
        (
            TensorSpec(name="outputs", dtype="float32", shape=predicted),
            TensorSpec(name="prednet_lengths", dtype="int64", shape=("B",)),
            *states("next_states_1", "next_states_2"),
        ),
        {"B": 1},
    )
    joiner = GraphDefinition(
        "joiner",
        Joiner(network),
        (
            TensorSpec(name="encoder_outputs", dtype="float32", shape=("B", dims.d_model, 1)),
            TensorSpec(name="decoder_outputs", dtype="float32", shape=predicted),
        ),
        (TensorSpec(name="outputs", dtype="float32", shape=("B", 1, 1, dims.n_vocab + 1 + dims.n_durations)),),
        {"B": 1},
    )
    write_graphs([encoder_graph("encoder", network, dims), decoder, joiner], folder / WEIGHTS_NAME)
    int32(folder / "decoder.onnx", ("targets", "target_length", "prednet_lengths"))
    _describe(folder / "encoder.onnx", source)
    (folder / "tokens.txt").write_text(numbered_pieces(source.pieces), encoding="utf-8")
    rows = zip(source.pieces, source.scores, strict=True)
    (folder / "bpe.vocab").write_text("".join(f"{piece}\t{score:g}\n" for piece, score in rows), encoding="utf-8")


def _describe(encoder: Path, source: NetworkSource) -> None:
    """Write the metadata that sherpa-onnx reads; versions before 2 know a TDT model by `tdt` in its url only."""
    dims = source.dims
    model = onnx.load(encoder, load_external_data=False)
    onnx.helper.set_model_props(
        model,
        {
            "vocab_size": str(dims.n_vocab),
            "normalize_type": "per_feature",
            "pred_rnn_layers": str(dims.pred_layers),
            "pred_hidden": str(dims.pred_hidden),
            "subsampling_factor": str(dims.subsampling_factor),
            "model_type": "EncDecRNNTBPEModel",
            "version": "2",
            "model_author": "NeMo",
            "url": f"{source.origin} (tdt)",
            "licence": source.licence,
            "feat_dim": str(dims.n_mels),
        },
    )
    onnx.save(model, encoder)
