"""Whisper as export sees it."""

from __future__ import annotations

from export.family import Family, FamilyModel
from export.weights import Weights


def _open(weights: Weights) -> FamilyModel:
    from export.families.whisper.model import WhisperModel

    return WhisperModel(weights)


FAMILY = Family("automatic-speech-recognition", ("whisper", ".pt", "ctranslate2"), _open)
