"""Whisper as the export pipeline sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from export.families.whisper.checkpoint import WhisperCheckpoint
from export.families.whisper.graphs import whisper_graphs
from export.families.whisper.modules import Whisper
from export.families.whisper.standin import SEED, RandomWhisper
from export.golden import Clip, Golden
from export.graphs import GraphDefinition, load_mapped
from export.parity import SourceModel
from export.weights import Weights
from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.families.whisper.settings import WhisperDims


class WhisperModel:
    """A Whisper checkpoint, or random weights."""

    def __init__(self, weights: Weights) -> None:
        self._folder = weights.path
        self._checkpoint: WhisperCheckpoint | RandomWhisper
        if weights.path is None:
            assert weights.entry is not None
            self._checkpoint = RandomWhisper(WhisperDims(**weights.entry.dims))
        else:
            self._checkpoint = WhisperCheckpoint(weights.path, weights.tokenizer)
        checkpoint = self._checkpoint
        self.dims: dict[str, int] = checkpoint.dims.model_dump()
        self.frontend = checkpoint.frontend.model_dump(mode="json")
        self.settings = checkpoint.settings.model_dump(mode="json")
        self.tensors = checkpoint.tensors
        self.float32: frozenset[str] = frozenset()
        self.side_files: Mapping[str, bytes] = {checkpoint.settings.tokenizer_file: checkpoint.tokenizer_json}
        self.source_files = checkpoint.files
        self.seed = SEED if weights.path is None else None
        settings = checkpoint.settings
        known = {settings.language} if settings.language else set(settings.languages or ("en",))
        self.languages: frozenset[str] | None = frozenset({"en"} if settings.task == "translate" else known)
        spoken = f"{len(settings.languages)} languages" if settings.languages else "English only"
        self.taken: tuple[str, ...] = (
            f"tokenizer of {checkpoint.dims.n_vocab} tokens, {spoken}",
            f"by default language {settings.language or ('detected' if settings.languages else 'en')}, "
            f"task {settings.task}, at most {settings.max_new_tokens or settings.max_length} tokens a window",
        )

    def read(self, name: str) -> torch.Tensor:
        """Return one parameter."""
        return self._checkpoint.read(name)

    def graphs(self, dtype: torch.dtype, weights: Path | None) -> dict[str, GraphDefinition]:
        """Return frontend, encoder, prefill_T and step; see export/families/whisper/graphs.py."""
        with torch.device("meta"):
            model = Whisper(self._checkpoint.dims).to(dtype)
        if weights is not None:
            load_mapped(model, weights)
        return whisper_graphs(model, self._checkpoint.dims, self._checkpoint.frontend, dtype)

    def golden(self, artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
        """Return the cases of export/families/whisper/cases.py."""
        from export.families.whisper.cases import whisper_golden

        return whisper_golden(artifact, engine, clips, trained=self.seed is None)

    def source(self, weights: Path) -> SourceModel:
        """Return transformers' Whisper."""
        from export.families.whisper.source import TransformersWhisper

        return TransformersWhisper(self._folder, weights, self._checkpoint)
