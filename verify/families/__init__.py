"""What a family adds to verify: its decode loop under teacher forcing, its task on a recording, its known bugs."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Protocol, cast

from runtime.artifact import Artifact
from runtime.engines.base import Engine, Floats
from runtime.errors import InputError
from runtime.manifest import Recording, TeacherForced
from runtime.results import Transcript
from verify.faults import Fault
from verify.golden import Golden

FAMILIES = {"whisper": "verify.families.whisper"}


class Family(Protocol):
    """The functions of a family's module."""

    def forced_logits(self, artifact: Artifact, engine: Engine, golden: Golden, forced: TeacherForced) -> Floats:
        """Return logits [n, V] f32 along the golden tokens: row i predicts tokens[prompt + i]."""

    def transcribe(self, artifact: Artifact, engine: Engine, recording: Recording) -> Transcript:
        """Run one recording of the artifact from file to text, with the recording's options."""

    def text_tokens(self, artifact: Artifact, tokens: Iterable[int]) -> list[int]:
        """Return the tokens that are text: what a recording's tokens are compared by."""

    def faults(self, artifact: Artifact) -> tuple[Fault, ...]:
        """Return the known bugs that verify injects on request."""


def family_of(artifact: Artifact) -> Family:
    """Return the module of the artifact's family.

    Raises
    ------
    InputError
        This version cannot verify that family.

    """
    family = artifact.content.family
    if family not in FAMILIES:
        msg = f"{artifact.path}: family {family!r}, expected one of {', '.join(FAMILIES)}; update atlasport"
        raise InputError(msg)
    return cast("Family", import_module(FAMILIES[family]))
