"""results/cases.json: what engines made of a user's recordings, against what people say is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from runtime.manifest import Variant
from verify.bootstrap import LEVEL, REPLICATES, SEED, Estimate, Part
from verify.results import EngineSection, Result, Subject
from verify.results_folder import RESULTS

NAME = "cases.json"


class CaseRecording(Result):
    """A file of the folder: `annotation` as it lies beside it, or why it could not be read."""

    name: str
    annotation: dict[str, Any] | None = None
    unreadable: str | None = None


class HeardCase(Result):
    """What was heard in a recording, as `run --json` prints it, and by rate what it was counted with."""

    name: str
    result: dict[str, Any]
    counts: dict[str, Part]


class EngineCases(EngineSection):
    """What an engine heard, or why it could not be run.

    `rates` are over the recordings that have a transcript (`WER`, `CER`) or annotated events (`event-F1`,
    `segment-F1`), `changes` by how much they are above the reference's.
    """

    variant: Variant
    is_reference: bool = False
    blocked: str | None = None
    rates: dict[str, Estimate] = Field(default_factory=dict)
    changes: dict[str, Estimate] = Field(default_factory=dict)
    recordings: tuple[HeardCase, ...] = ()
    simulated: bool = False
    flags: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def title(self) -> str:
        """Engine, device and variant as a person reads them, and whether it is the reference."""
        return f"{self.label}, {self.variant}{' (reference)' if self.is_reference else ''}"


class CasesFile(Subject):
    """results/cases.json; `selection` is the folder. No gate judges it, and it is no part of the verdict."""

    folder: str
    labels: tuple[str, ...] = ()
    replicates: int = REPLICATES
    seed: int = SEED
    level: float = LEVEL
    recordings: tuple[CaseRecording, ...]
    engines: tuple[EngineCases, ...]

    @property
    def unreadable(self) -> list[CaseRecording]:
        """The recordings that could not be read."""
        return [recording for recording in self.recordings if recording.unreadable]

    @property
    def unannotated(self) -> list[str]:
        """The recordings that were heard and not counted: nothing that the model tells is beside them."""
        heard = [recording for engine in self.engines for recording in engine.recordings]
        counted = {recording.name for recording in heard if recording.counts}
        return sorted({recording.name for recording in heard} - counted)

    @property
    def has_reference(self) -> bool:
        """Whether there are ONNX graphs to put the engines beside."""
        return any(engine.is_reference for engine in self.engines)

    @property
    def method(self) -> str:
        """How the intervals were made."""
        return f"{self.level:.0%} intervals: bootstrap over recordings, {self.replicates} draws, seed {self.seed}"


def in_words(name: str, found: Estimate, *, change: bool = False) -> str:
    """Return a rate and its interval as a person reads them, in per cent, a change in points and with its sign."""
    form = "+.2f" if change else ".2f"
    ends = () if found.low is None or found.high is None else (found.low, found.high)
    interval = f" [{', '.join(f'{100 * end:{form}}' for end in ends)}]" if ends else ""
    return f"{name} {100 * found.value:{form}} {'points' if change else '%'}{interval}"


def read_cases(folder: Path, content_sha256: str) -> CasesFile | None:
    """Return the cases that were last heard with an artifact, None where there are none of this export."""
    try:
        found = CasesFile.model_validate_json((folder / RESULTS / NAME).read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.content_sha256 == content_sha256 else None
