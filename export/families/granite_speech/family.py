"""Granite Speech as export sees it."""

from __future__ import annotations

from export.family import Family, FamilyModel
from export.weights import Weights

# Refused with what they lack here.
_RELATIVES = ("granite_speech_plus", "granite_speech_nar", "granite_speech5_ctc")


def _open(weights: Weights) -> FamilyModel:
    from export.families.granite_speech.model import GraniteModel

    return GraniteModel(weights)


FAMILY = Family("automatic-speech-recognition", ("granite_speech", *_RELATIVES), _open)
