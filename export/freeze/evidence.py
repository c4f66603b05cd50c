"""What verify found, read from an artifact's results/*.json; nothing is taken from results of another artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from runtime.artifact import Artifact
from runtime.bundle.manifest import Profile, Verification
from verify.evidence import unfounded
from verify.results import AccuracyFile, RecordingAccuracy

NAMES = ("accuracy", "performance", "inference", "env_info")
# verify's largest results file of whisper-tiny has 200 kB.
_MAX_BYTES = 16 * 2**20


class _Part(BaseModel):
    """A part of a results file: only what freeze reads is named."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Subject(_Part):
    """What all results files begin with; `selection` names the chosen cases, None for all."""

    content_sha256: str
    created: str
    device: str
    simulated: bool
    versions: dict[str, str]
    selection: tuple[str, ...] | None


class Latency(_Part):
    """Seconds."""

    p50: float
    p95: float


class Timing(_Part):
    """Cold and warm calls, seconds."""

    cold_s: float
    latency_s: Latency


class EndToEnd(_Part):
    """The timed recording; `rtf` is processing time over duration."""

    recording: str
    duration_s: float
    rtf: float
    tokens_per_s: float | None
    latency: Timing


class Memory(_Part):
    """Resident memory of the host in bytes."""

    peak: int


class TimedEngine(_Part):
    """One engine in performance.json; parts are None where it was blocked."""

    engine: str
    device: str
    simulated: bool = False
    load_s: float | None = None
    end_to_end: EndToEnd | None = None
    memory: Memory | None = None


class Performance(Subject):
    """results/performance.json."""

    engines: tuple[TimedEngine, ...]


_File = TypeVar("_File", bound=BaseModel)


@dataclass(frozen=True)
class Evidence:
    """The results of an artifact.

    `problem` says why they do not count as a pass of the profile's engines, None where they do; `elsewhere`, why they
    are not of the profile's device. `files` are the results files as they are, by name.
    """

    problem: str | None
    elsewhere: str | None = None
    verification: Verification | None = None
    accuracy: AccuracyFile | None = None
    performance: Performance | None = None
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def differing(self) -> frozenset[str]:
        """The recordings in which an engine went another way than golden from a near-tie on."""
        engines = self.accuracy.engines if self.accuracy else ()
        heard = [recording for engine in engines for recording in engine.recordings]
        return frozenset(one.name for one in heard if isinstance(one, RecordingAccuracy) and one.near_tie)


def read_evidence(artifact: Artifact, profile: Profile, engines: Sequence[str]) -> Evidence:
    """Read and judge an artifact's results.

    Parameters
    ----------
    artifact : Artifact
        Its folder holds `results/`, where verify has run.
    profile : {"npu", "cpu", "om"}
        Whose device it must have been.
    engines : Sequence[str]
        Those of the profile: one of them must have passed, and none failed.

    """
    folder = artifact.path / "results"
    contents = {name: _read(folder / f"{name}.json") for name in NAMES}
    files = {
        f"{name}.json": data
        for name, data in contents.items()
        if data and (subject := _parsed(Subject, data)) and subject.content_sha256 == artifact.manifest.content_sha256
    }
    found = contents["accuracy"]
    if found is None:
        return Evidence("not verified (no results/accuracy.json; `atlasport verify` writes it)")
    accuracy = _parsed(AccuracyFile, found)
    if accuracy is None:
        return Evidence("not verified (results/accuracy.json is not what verify writes; run `atlasport verify` again)")
    if "accuracy.json" not in files:
        return Evidence("not verified (results/accuracy.json is of another export; run `atlasport verify` again)")
    passed = tuple(e.engine for e in accuracy.engines if e.verdict == "pass" and e.engine in engines)
    verification = Verification(
        verdict=accuracy.verdict, device=accuracy.device, engines=passed, simulated=accuracy.simulated
    )
    performance = _parsed(Performance, files["performance.json"]) if "performance.json" in files else None
    problem = _problem(artifact, accuracy, passed, engines)
    elsewhere = None if problem else _elsewhere(accuracy, profile, passed)
    return Evidence(problem, elsewhere, verification, accuracy, performance, files)


def _problem(artifact: Artifact, accuracy: AccuracyFile, passed: Sequence[str], engines: Sequence[str]) -> str | None:
    if accuracy.verdict != "pass":
        return f"verify's verdict is {accuracy.verdict}, expected pass ({accuracy.summary})"
    if accuracy.selection is not None:
        return "verified in some cases only (run `atlasport verify` without --cases)"
    if not passed:
        return f"not verified with {' or '.join(engines)}, the engines of the profile (run `atlasport verify` again)"
    if reason := unfounded(artifact, accuracy):
        return f"not verified ({reason}: results/accuracy.json was changed; run `atlasport verify` again)"
    return None


def _elsewhere(accuracy: AccuracyFile, profile: Profile, passed: Sequence[str]) -> str | None:
    """Return why no engine of the profile passed on its device; OM files, which verify cannot run, stand on the CPU."""
    wanted = "npu" if profile == "npu" else "cpu"
    devices = sorted({e.device for e in accuracy.engines if e.verdict == "pass" and e.engine in passed})
    if any(device.partition(":")[0] == wanted for device in devices):
        return None
    device = "an NPU" if wanted == "npu" else "the CPU"
    return f"the profile {profile} runs on {device}, verified on {', '.join(devices)} only"


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None


def _parsed(kind: type[_File], data: bytes) -> _File | None:
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        return None
