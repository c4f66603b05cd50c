"""Parakeet-CTC as the export pipeline sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from export.families.parakeet_ctc.checkpoint import CtcCheckpoint
from export.families.parakeet_ctc.graphs import ctc_graphs
from export.families.parakeet_ctc.modules import ParakeetCtc
from export.families.parakeet_ctc.standin import RandomCtc
from export.family import FamilyModel
from export.fastconformer.graphs import Constants
from export.golden import Clip, Golden
from export.graphs import GraphDefinition
from export.parity import SourceModel
from export.weights import Weights
from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.fastconformer.settings import ENCODER


class CtcModel(FamilyModel):
    """A Parakeet-CTC checkpoint, the CTC head of a hybrid, or random weights."""

    encoders = frozenset({ENCODER})
    logits = frozenset({"logits"})

    def __init__(self, weights: Weights) -> None:
        made: CtcCheckpoint | RandomCtc
        made = self._checkpoint = CtcCheckpoint.open(weights) if weights.path else RandomCtc(weights.sizes)
        super().__init__(
            weights,
            made,
            side_files={made.settings.tokenizer_file: made.tokenizer},
            taken=(f"tokenizer of {made.dims.n_vocab} pieces",),
        )

    def network(self, dtype: torch.dtype) -> ParakeetCtc:
        """Return the network; see FamilyModel."""
        return ParakeetCtc(self._checkpoint.dims).to(dtype)

    def graphs_of(self, network: ParakeetCtc, dtype: torch.dtype) -> dict[str, GraphDefinition]:  # noqa: ARG002 - logits are float32
        """Return frontend and encoder; see export/families/parakeet_ctc/graphs.py."""
        checkpoint = self._checkpoint
        constants = Constants(checkpoint.window, checkpoint.filters)
        return ctc_graphs(network, constants, checkpoint.dims, checkpoint.frontend)

    def golden(self, artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
        """Return the cases of export/families/parakeet_ctc/cases.py."""
        from export.families.parakeet_ctc.cases import ctc_golden

        return ctc_golden(artifact, engine, clips)

    def source(self, weights: Path) -> SourceModel:
        """Return transformers' ParakeetForCTC with torch's Fourier transform before it."""
        from export.families.parakeet_ctc.source import SourceCtc

        return SourceCtc(self._checkpoint, weights)
