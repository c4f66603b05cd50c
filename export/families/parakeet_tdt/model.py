"""Parakeet-TDT as the export pipeline sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from export.families.parakeet_tdt.checkpoint import ParakeetCheckpoint
from export.families.parakeet_tdt.graphs import parakeet_graphs
from export.families.parakeet_tdt.modules import Parakeet
from export.families.parakeet_tdt.standin import RandomParakeet
from export.family import FamilyModel
from export.fastconformer.graphs import Constants
from export.golden import Clip, Golden
from export.graphs import GraphDefinition
from export.parity import SourceModel
from export.weights import Weights
from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.families.parakeet_tdt.settings import ParakeetDims
from runtime.fastconformer.settings import ENCODER


class ParakeetModel(FamilyModel):
    """A Parakeet-TDT checkpoint, or random weights."""

    encoders = frozenset({ENCODER})
    logits = frozenset({"logits"})

    def __init__(self, weights: Weights) -> None:
        made: ParakeetCheckpoint | RandomParakeet
        made = ParakeetCheckpoint.open(weights) if weights.path else RandomParakeet(ParakeetDims(**weights.sizes))
        self._checkpoint, settings = made, made.settings
        super().__init__(
            weights,
            made,
            side_files={settings.tokenizer_file: made.tokenizer},
            taken=(
                f"tokenizer of {made.dims.n_vocab} pieces",
                f"durations {', '.join(map(str, settings.durations))}; at most {settings.max_symbols} tokens a frame",
            ),
        )

    def network(self, dtype: torch.dtype) -> Parakeet:
        """Return the network; see FamilyModel."""
        return Parakeet(self._checkpoint.dims).to(dtype)

    def graphs_of(self, network: Parakeet, dtype: torch.dtype) -> dict[str, GraphDefinition]:
        """Return frontend, encoder, step, join and decode_N; see export/families/parakeet_tdt/graphs.py."""
        made = self._checkpoint
        constants = Constants(made.window, made.filters)
        return parakeet_graphs(network, constants, made.dims, made.frontend, made.settings, dtype=dtype)

    def golden(self, artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
        """Return the cases of export/families/parakeet_tdt/cases.py."""
        from export.families.parakeet_tdt.cases import parakeet_golden

        return parakeet_golden(artifact, engine, clips, trained=self.seed is None)

    def source(self, weights: Path) -> SourceModel:
        """Return transformers' encoder with torch's own layers around it."""
        from export.families.parakeet_tdt.source import SourceParakeet

        return SourceParakeet(self._checkpoint, weights)
