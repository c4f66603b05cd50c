"""The model families that export knows, a folder each."""

from __future__ import annotations

from importlib import import_module

from export.family import Family, FamilyModel
from export.weights import Weights, family_of
from runtime.errors import InputError

# Each module's FAMILY; loaded when it is asked for.
FAMILIES = {
    "whisper": "export.families.whisper.family",
    "parakeet_tdt": "export.families.parakeet_tdt.family",
    "parakeet_ctc": "export.families.parakeet_ctc.family",
    "cnn8rnn": "export.families.cnn8rnn.family",
    "granite_speech": "export.families.granite_speech.family",
}


def family_named(name: str) -> Family:
    """Return a family of FAMILIES."""
    family: Family = import_module(FAMILIES[name]).FAMILY
    return family


def checkpoints(head: str | None = None) -> dict[str, str]:
    """Return the family that reads each kind of checkpoint, of those with `head` where one is asked for.

    Raises
    ------
    InputError
        No family has such a head.

    """
    families = {name: family_named(name) for name in FAMILIES}
    if head is not None:
        families = {name: family for name, family in families.items() if family.head == head}
        if not families:
            known = ", ".join(sorted({family_named(name).head or "" for name in FAMILIES} - {""}))
            raise InputError(f"--head: expected one of {known}, found {head!r}")
    return {kind: name for name, family in reversed(families.items()) for kind in family.checkpoints}


def open_model(weights: Weights) -> tuple[str, FamilyModel]:
    """Return the family of a checkpoint and the checkpoint opened by it.

    Raises
    ------
    InputError
        No checkpoint, a damaged one, or one of another family.

    """
    family = family_of(weights, checkpoints(weights.head))
    return family, family_named(family).open(weights)
