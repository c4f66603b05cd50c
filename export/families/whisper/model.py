"""Whisper as the export pipeline sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from export.checkpoint import is_plain
from export.families.whisper.alignment import Alignment
from export.families.whisper.checkpoint import WhisperCheckpoint
from export.families.whisper.checkpoints import open_checkpoint
from export.families.whisper.graphs import whisper_graphs
from export.families.whisper.modules import Whisper
from export.family import FamilyModel
from export.golden import Clip, Golden
from export.graphs import GraphDefinition
from export.lora import AdaptedCheckpoint
from export.parity import SourceModel
from export.registry import JAPANESE_RECORDING, SPEECH_RECORDINGS
from export.weights import Weights
from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.families.whisper.settings import WhisperDims, WhisperSettings

# The token embedding is the vocabulary projection.
_TIED = ("decoder.embed_tokens.weight", "proj_out.weight")

# The encoder's frames of a window of 30 s, which recordings like `fast_en` are made for.
_FULL_CTX = 1500


class WhisperModel(FamilyModel):
    """A Whisper checkpoint, or random weights."""

    encoders = frozenset({"encoder"})
    logits = frozenset({"logits"})

    def __init__(self, weights: Weights) -> None:
        self._folder, self._adapter = weights.path, weights.adapter
        checkpoint = self._checkpoint = open_checkpoint(weights)
        adapted = AdaptedCheckpoint(checkpoint, weights.adapter, _graph_name, _TIED) if weights.adapter else None
        settings = checkpoint.settings
        if checkpoint.dims.n_audio_ctx == _FULL_CTX:
            foreign = (JAPANESE_RECORDING,) if "ja" in settings.languages else ()
            self.recordings = (*SPEECH_RECORDINGS, *foreign)
        super().__init__(
            weights,
            checkpoint,
            side_files={settings.tokenizer_file: checkpoint.tokenizer_json},
            taken=_taken(settings, checkpoint.dims),
            languages=_written(settings),
            parameters=adapted,
        )

    def network(self, dtype: torch.dtype) -> Whisper:
        """Return the network; see FamilyModel."""
        return Whisper(self._checkpoint.dims).to(dtype)

    def graphs_of(self, network: Whisper, dtype: torch.dtype) -> dict[str, GraphDefinition]:
        """Return frontend, encoder, prefill_T, step and align; see export/families/whisper/graphs.py."""
        checkpoint = self._checkpoint
        alignment = Alignment(checkpoint.alignment_heads, checkpoint.settings.special)
        return whisper_graphs(network, checkpoint.dims, checkpoint.frontend, dtype, alignment)

    def golden(self, artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
        """Return the cases of export/families/whisper/cases.py."""
        from export.families.whisper.cases import whisper_golden

        return whisper_golden(artifact, engine, clips, trained=self.seed is None)

    def source(self, weights: Path) -> SourceModel:
        """Return transformers' Whisper."""
        from export.families.whisper.source import TransformersWhisper

        # What transformers does not read itself is given to its network.
        reads = isinstance(self._checkpoint, WhisperCheckpoint) and self._folder is not None and is_plain(self._folder)
        folder = self._folder if reads else None
        return TransformersWhisper(folder, weights, self._checkpoint, adapter=self._adapter)


def _graph_name(name: str) -> str:
    """Return our name of a tensor that an adapter calls by transformers' name."""
    return name.removeprefix("model.")


def _written(settings: WhisperSettings) -> frozenset[str]:
    """Return the languages that the model writes as they are spoken where no option says otherwise."""
    if settings.task == "translate":
        return frozenset({"en"})
    return frozenset({settings.language} if settings.language else settings.languages or ("en",))


def _taken(settings: WhisperSettings, dims: WhisperDims) -> tuple[str, ...]:
    spoken = f"{len(settings.languages)} languages, by default {settings.language or 'detected'}"
    return (
        f"tokenizer of {dims.n_vocab} tokens; {spoken if settings.languages else 'English only'}",
        f"task {settings.task}, at most {settings.max_new_tokens or settings.max_length} tokens a window",
    )
