"""The model families that export knows, a folder each."""

from __future__ import annotations

from importlib import import_module

from export.family import Family, FamilyModel
from export.weights import Weights, family_of

# Each module's FAMILY; loaded when it is asked for.
FAMILIES = {
    "whisper": "export.families.whisper.family",
    "parakeet_tdt": "export.families.parakeet_tdt.family",
    "cnn8rnn": "export.families.cnn8rnn.family",
    "granite_speech": "export.families.granite_speech.family",
}


def family_named(name: str) -> Family:
    """Return a family of FAMILIES."""
    family: Family = import_module(FAMILIES[name]).FAMILY
    return family


def checkpoints() -> dict[str, str]:
    """Return the family that reads each kind of checkpoint; see `Family.checkpoints`."""
    return {kind: name for name in FAMILIES for kind in family_named(name).checkpoints}


def open_model(weights: Weights) -> tuple[str, FamilyModel]:
    """Return the family of a checkpoint and the checkpoint opened by it.

    Raises
    ------
    InputError
        No checkpoint, a damaged one, or one of another family.

    """
    family = family_of(weights, checkpoints())
    return family, family_named(family).open(weights)
