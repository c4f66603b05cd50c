"""Cnn8Rnn as export sees it."""

from __future__ import annotations

from export.family import Family, FamilyModel
from export.weights import Weights


def _open(weights: Weights) -> FamilyModel:
    from export.families.cnn8rnn.model import Cnn8RnnModel

    return Cnn8RnnModel(weights)


FAMILY = Family("sound-event-detection", ("Cnn8RnnSoundEventDetection",), _open)
