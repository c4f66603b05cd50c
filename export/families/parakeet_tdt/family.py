"""Parakeet-TDT as export sees it."""

from __future__ import annotations

from typing import Any

from export.family import Family, FamilyModel, Layouts
from export.weights import Weights


def _open(weights: Weights) -> FamilyModel:
    from export.families.parakeet_tdt.model import ParakeetModel

    return ParakeetModel(weights)


def _layouts() -> Layouts[Any]:
    from export.families.parakeet_tdt.layouts import FAMILY_LAYOUTS

    return FAMILY_LAYOUTS


FAMILY = Family(
    "automatic-speech-recognition",
    ("parakeet_tdt", "EncDecRNNTBPEModel", "EncDecHybridRNNTCTCBPEModel"),
    _open,
    _layouts,
    head="tdt",
)
