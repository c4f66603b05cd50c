"""Parakeet-TDT as the export pipeline sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from export.families.parakeet_tdt.checkpoint import ParakeetCheckpoint, open_checkpoint
from export.families.parakeet_tdt.graphs import Constants, parakeet_graphs
from export.families.parakeet_tdt.modules import Parakeet
from export.families.parakeet_tdt.standin import RandomParakeet
from export.golden import Clip, Golden
from export.graphs import GraphDefinition, load_mapped
from export.parity import SourceModel
from export.weights import Weights
from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.families.parakeet_tdt.settings import ParakeetDims


class ParakeetModel:
    """A Parakeet-TDT checkpoint, or random weights."""

    def __init__(self, weights: Weights) -> None:
        self._checkpoint: ParakeetCheckpoint | RandomParakeet
        if weights.path is None:
            assert weights.entry is not None
            self._checkpoint = RandomParakeet(ParakeetDims(**weights.entry.dims))
        else:
            self._checkpoint = open_checkpoint(weights)
        checkpoint = self._checkpoint
        self.dims: dict[str, int] = checkpoint.dims.model_dump()
        self.frontend = checkpoint.frontend.model_dump(mode="json")
        self.settings = checkpoint.settings.model_dump(mode="json")
        self.tensors = checkpoint.tensors
        self.float32: frozenset[str] = frozenset()
        self.side_files: Mapping[str, bytes] = {checkpoint.settings.tokenizer_file: checkpoint.tokenizer}
        self.source_files = checkpoint.files
        self.seed = checkpoint.seed
        # A checkpoint does not say what it was trained on.
        self.languages: frozenset[str] | None = None
        settings = checkpoint.settings
        self.taken: tuple[str, ...] = (
            f"tokenizer of {checkpoint.dims.n_vocab} pieces",
            f"durations {', '.join(map(str, settings.durations))}; at most {settings.max_symbols} tokens a frame",
        )
        self.notes = checkpoint.notes

    def read(self, name: str) -> torch.Tensor:
        """Return one parameter; see ParakeetCheckpoint.read for what is folded."""
        return self._checkpoint.read(name)

    def graphs(self, dtype: torch.dtype, weights: Path | None) -> dict[str, GraphDefinition]:
        """Return frontend, encoder, step, join and decode_N; see export/families/parakeet_tdt/graphs.py."""
        checkpoint = self._checkpoint
        with torch.device("meta"):
            model = Parakeet(checkpoint.dims).to(dtype)
        if weights is not None:
            load_mapped(model, weights)
        constants = Constants(checkpoint.window, checkpoint.filters)
        return parakeet_graphs(model, constants, checkpoint.dims, checkpoint.frontend, checkpoint.settings, dtype=dtype)

    def golden(self, artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
        """Return the cases of export/families/parakeet_tdt/cases.py."""
        from export.families.parakeet_tdt.cases import parakeet_golden

        return parakeet_golden(artifact, engine, clips)

    def source(self, weights: Path) -> SourceModel:
        """Return transformers' encoder with torch's own layers around it."""
        from export.families.parakeet_tdt.source import SourceParakeet

        return SourceParakeet(self._checkpoint, weights)
