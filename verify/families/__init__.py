"""What a family adds to verify: its decisions, its task on a recording, its known bugs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeAlias, cast

from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines.base import Engine
from runtime.errors import InputError
from runtime.families import family_of as runtime_family
from runtime.golden import Golden
from runtime.manifest import Recording
from runtime.results import Result
from verify.faults import Fault
from verify.results import CaseAccuracy, EventAccuracy, ForcedAccuracy, FrameDecisions, RecordingAccuracy

FAMILIES = {
    "whisper": "verify.families.whisper",
    "cnn8rnn": "verify.families.cnn8rnn",
    "parakeet_tdt": "verify.families.parakeet_tdt",
    "granite_speech": "verify.families.granite_speech",
}


Decided: TypeAlias = ForcedAccuracy | FrameDecisions


@dataclass(frozen=True)
class Decision:
    """Decisions that one engine takes: `judge` runs and compares them, `kind` is what it returns."""

    name: str
    kind: type[ForcedAccuracy | FrameDecisions]
    judge: Callable[[Engine], Decided]


class Family(Protocol):
    """What a family's module holds; RECORDING is the type that `judge` returns."""

    RECORDING: type[RecordingAccuracy | EventAccuracy]

    def host_stages(self, artifact: Artifact, golden: Golden, selected: set[str]) -> list[CaseAccuracy]:
        """Return what the host computes ahead of the graphs, compared with golden arrays; none where a graph does."""

    def decide(self, artifact: Artifact, golden: Golden, selected: set[str]) -> list[Decision]:
        """Return what decisions are to be compared: teacher-forced runs, or scores at their thresholds."""

    def searches(self, artifact: Artifact) -> Mapping[str, dict[str, Any]]:
        """Return by name the options of each kind of search whose work on the device is counted."""

    def judge(
        self, artifact: Artifact, engine: Engine, recording: Recording, result: Any
    ) -> RecordingAccuracy | EventAccuracy:
        """Compare a recording's result with the golden run's and with the person's; `engine` helps to say why."""

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


def open_recognizer(artifact: Artifact, engine: Engine) -> Callable[[Recording], Result]:
    """Return a function from the artifact's recordings to results: from the file, with the recording's options."""
    family = runtime_family(artifact)
    recognizer = family.open(artifact, engine, None)

    def recognize(recording: Recording) -> Result:
        options = family.options.parse(recording.options)
        result: Result = recognizer.recognize(open_audio(artifact.file(recording.file)), options)
        return result

    return recognize
