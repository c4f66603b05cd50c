"""Parakeet-CTC as export sees it."""

from __future__ import annotations

from export.family import Family, FamilyModel
from export.weights import Weights


def _open(weights: Weights) -> FamilyModel:
    from export.families.parakeet_ctc.model import CtcModel

    return CtcModel(weights)


FAMILY = Family(
    "automatic-speech-recognition",
    ("parakeet_ctc", "EncDecCTCModelBPE", "EncDecHybridRNNTCTCBPEModel"),
    _open,
    head="ctc",
)
