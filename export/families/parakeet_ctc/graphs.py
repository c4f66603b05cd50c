"""Parakeet-CTC's graphs: log-mel `frontend`, and `encoder` with its CTC head. B (recordings) and lengths are open."""

from __future__ import annotations

import torch

from export.families.parakeet_ctc.modules import ParakeetCtc
from export.fastconformer.graphs import Constants, EncoderBody, encoder_graph, frontend_graph
from export.graphs import GraphDefinition
from runtime.fastconformer.settings import FastConformerDims, FastConformerFrontend
from runtime.manifest import TensorSpec


class EncoderGraph(EncoderBody):
    """Features to logits."""

    def __init__(self, model: ParakeetCtc, dims: FastConformerDims) -> None:
        super().__init__(model.encoder, dims)
        self.decoder = model.decoder

    def forward(self, features: torch.Tensor, features_len: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits [B, T, V + 1] f32, zero where there are no frames, and the frames' number i64 [B].

        The arguments are those of `encode`.
        """
        rows, live, frames_len = self.encode(features, features_len)
        head = self.decoder.decoder_layers[0]
        logits = head(rows).float().view(*live.shape, head.out_features)
        return logits.masked_fill(~live.unsqueeze(2), 0.0), frames_len


def ctc_graphs(
    model: ParakeetCtc, constants: Constants, dims: FastConformerDims, frontend: FastConformerFrontend
) -> dict[str, GraphDefinition]:
    """Return the graphs `frontend` and `encoder` of a model with its parameters, or on the meta device.

    Audio, features and logits are float32, whatever the weights are.
    """
    model = model.eval().requires_grad_(requires_grad=False)
    logits = TensorSpec(name="logits", dtype="float32", shape=("batch", "n_enc", dims.n_vocab + 1))
    graphs = (frontend_graph(constants, dims, frontend), encoder_graph(EncoderGraph(model, dims), dims, logits))
    return {graph.name: graph for graph in graphs}
