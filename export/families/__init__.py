"""The model families that export knows.

A new family is one module with a class like `WhisperModel`, and one line in each of the three dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from export.golden import Clip, Golden
from export.graphs import GraphDefinition
from export.parity import SourceModel
from export.safetensors_writer import TensorInfo
from export.weights import Weights, family_of
from runtime.artifact import Artifact
from runtime.engines.base import Engine

# `model_type` of a checkpoint's config.json, one of its `architectures`, its suffix, or the program that wrote it, to
# the family that reads it.
MODEL_TYPES = {
    "whisper": "whisper",
    ".pt": "whisper",
    "ctranslate2": "whisper",
    "parakeet_tdt": "parakeet_tdt",
    ".nemo": "parakeet_tdt",
    "Cnn8RnnSoundEventDetection": "cnn8rnn",
    "granite_speech": "granite_speech",
    # Relatives, which the family refuses with what they lack here.
    "granite_speech_plus": "granite_speech",
    "granite_speech_nar": "granite_speech",
    "granite_speech5_ctc": "granite_speech",
}
TASKS = {
    "whisper": "automatic-speech-recognition",
    "parakeet_tdt": "automatic-speech-recognition",
    "cnn8rnn": "sound-event-detection",
    "granite_speech": "automatic-speech-recognition",
}


class FamilyModel(Protocol):
    """One model: what the pipeline asks of its family.

    `dims`, `frontend` and `settings` go into the manifest. `tensors` are the parameters, under the names that the
    graphs give them; those named in `float32` keep that dtype in every variant. `side_files` lie beside the graphs;
    `source_files` are those of the checkpoint that were read. `seed` is that of random weights, None for a checkpoint.
    `languages` are the codes of those that the model writes as they are spoken, None where the checkpoint does not say.
    `taken` says in words, for a person, what the checkpoint was taken for: tokenizer, languages, defaults.
    `notes` tell the user, a line each, what the checkpoint states and the artifact does not honour, or what it assumes.
    """

    dims: dict[str, int]
    frontend: dict[str, Any]
    settings: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    float32: frozenset[str]
    side_files: Mapping[str, bytes]
    source_files: tuple[Path, ...]
    seed: int | None
    languages: frozenset[str] | None
    taken: tuple[str, ...]
    notes: tuple[str, ...]

    def read(self, name: str) -> torch.Tensor:
        """Return one parameter as the checkpoint stores it."""

    def graphs(self, dtype: torch.dtype, weights: Path | None) -> dict[str, GraphDefinition]:
        """Return the graphs with the parameters of a weights.safetensors, or on the meta device."""

    def golden(self, artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
        """Return golden cases and recordings, computed by `engine` from the fp32 graphs of `artifact`."""

    def source(self, weights: Path) -> SourceModel:
        """Return the source implementation with the checkpoint's parameters (`weights` holds them in fp32)."""


def _whisper(weights: Weights) -> FamilyModel:
    from export.families.whisper.model import WhisperModel

    return WhisperModel(weights)


def _cnn8rnn(weights: Weights) -> FamilyModel:
    from export.families.cnn8rnn.model import Cnn8RnnModel

    return Cnn8RnnModel(weights)


def _parakeet_tdt(weights: Weights) -> FamilyModel:
    from export.families.parakeet_tdt.model import ParakeetModel

    return ParakeetModel(weights)


def _granite_speech(weights: Weights) -> FamilyModel:
    from export.families.granite_speech.model import GraniteModel

    return GraniteModel(weights)


FAMILIES: dict[str, Callable[[Weights], FamilyModel]] = {
    "whisper": _whisper,
    "parakeet_tdt": _parakeet_tdt,
    "cnn8rnn": _cnn8rnn,
    "granite_speech": _granite_speech,
}


def open_model(weights: Weights) -> tuple[str, FamilyModel]:
    """Return the family of a checkpoint and the checkpoint opened by it.

    Raises
    ------
    InputError
        No checkpoint, a damaged one, or one of another family.

    """
    family = family_of(weights, MODEL_TYPES)
    return family, FAMILIES[family](weights)
