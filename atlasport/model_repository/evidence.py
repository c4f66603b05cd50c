"""Verify's results of one artifact, from its folder and from archives of acceptance; what does not count is refused."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from atlasport.acceptance import SUMMARY_NAME
from atlasport.model_repository.archive import Reader, archive_reader, folder_reader
from atlasport.model_repository.consistency import contradiction
from atlasport.model_repository.markdown import one_line
from runtime.artifact import Artifact
from runtime.engines import ENGINES, check_device_name
from runtime.errors import GateError, InputError
from runtime.manifest import RelativePath
from runtime.npu_smi import NpuChip
from verify.devices import parse_devices
from verify.evidence import unfounded
from verify.inference import InferenceFile
from verify.results import AccuracyFile, EngineAccuracy, EnvironmentFile, Subject
from verify.results_folder import LOGS, RESULTS
from verify.timings import EnginePerformance, PerformanceFile

_JUDGED = f"{RESULTS}/accuracy.json"
# What the templates say of a chip; older results have no power.
_CHIP = frozenset(NpuChip.__dataclass_fields__) - {"power_w"}
# Flags of the steps of acceptance that are for comparison only.
_FOR_COMPARISON = frozenset({"--default-precision", "--capture"})
_File = TypeVar("_File", bound=Subject)


@dataclass(frozen=True)
class Run:
    """One run of verify: its results, and the bytes of its files by the names that verify gave them.

    `where` says in a message which run it is.
    """

    where: str
    accuracy: AccuracyFile
    performance: PerformanceFile
    inference: InferenceFile
    environment: EnvironmentFile
    files: dict[str, bytes]

    @property
    def simulated(self) -> bool:
        """Whether a stand-in for a device was used."""
        parts: list[Subject] = [self.accuracy, self.performance, self.inference, self.environment]
        engines: list[EngineAccuracy | EnginePerformance] = [*self.accuracy.engines, *self.performance.engines]
        return any(part.simulated for part in parts) or any(engine.simulated for engine in engines)

    @property
    def on_npu(self) -> bool:
        """Whether it passed on a real NPU."""
        passed = (e for e in self.accuracy.engines if e.verdict == "pass" and not e.simulated)
        return not self.simulated and any(engine.device.startswith("npu") for engine in passed)

    @property
    def chips(self) -> tuple[dict[str, Any], ...]:
        """The rows of npu-smi's table."""
        table = (self.environment.ascend or {}).get("npu_smi") or {}
        return tuple(chip for chip in table.get("chips") or () if set(chip) >= _CHIP)

    @property
    def socs(self) -> tuple[str, ...]:
        """The SoCs by npu-smi's table, else by what the device itself told."""
        named = [str(chip["soc"]) for chip in self.chips] or self.accuracy.versions.get("soc", "").split(", ")
        return tuple(soc for soc in dict.fromkeys(named) if soc)


def read_runs(
    artifact: Artifact, archives: Sequence[Path], *, allow_simulated: bool = False, allow_random: bool = False
) -> tuple[Run, ...]:
    """Return all runs that count, those on an NPU first.

    Parameters
    ----------
    artifact : Artifact
        Its own results count where there are any.
    archives : sequence of Path
        What `atlasport acceptance` wrote on other machines, packed or unpacked.
    allow_simulated, allow_random : bool
        Take results of a simulated device, or of random weights; whoever shows them has to say so.

    Raises
    ------
    InputError
        There are no results, or they are of another export, or no results at all.
    GateError
        The results are no pass of the whole artifact on a real device with trained weights.

    """
    if artifact.content.source.weights == "random" and not allow_random:
        raise GateError(
            f"{artifact.path}: its weights are random, so its results are no evidence; "
            "export trained ones, or publish them with --allow-random, which says so in the title"
        )
    found: list[Run] = []
    own = _own_run(artifact)
    for run in (*(run for path in archives for run in _runs_of_archive(artifact, path)), *([own] if own else [])):
        # An archive may be given twice, or hold the run that lies in the artifact.
        if run.files[_JUDGED] not in [other.files[_JUDGED] for other in found]:
            found.append(run)
    if not found:
        raise InputError(f"{artifact.path}: expected results, found none; run `atlasport verify {artifact.path}` first")
    for run in found:
        _check(artifact, run, allow_simulated=allow_simulated)
    return tuple(sorted(found, key=lambda run: (not run.on_npu, not run.accuracy.device.startswith("npu"))))


def _check(artifact: Artifact, run: Run, *, allow_simulated: bool) -> None:
    """Refuse a run that proves nothing of the whole artifact."""
    accuracy = run.accuracy
    # They name folders and columns.
    parse_devices(accuracy.device)
    for engine in (*accuracy.engines, *run.performance.engines, *run.inference.engines):
        check_device_name(engine.device)
        if engine.engine not in ENGINES:
            raise InputError(f"{run.where}: expected engines of {', '.join(ENGINES)}, found {engine.engine[:40]!r}")
    if accuracy.selection is not None:
        raise GateError(f"{run.where}: verified in some cases only; run `atlasport verify` without --cases")
    if accuracy.verdict != "pass":
        raise GateError(f"{run.where}: expected the verdict pass, found {accuracy.verdict} ({accuracy.summary})")
    if run.simulated and not allow_simulated:
        raise GateError(
            f"{run.where}: of a simulated device, which is no evidence; verify on a real one, "
            "or publish them with --allow-simulated, which says so in the title"
        )
    if reason := unfounded(artifact, accuracy) or contradiction(artifact, run.performance, run.inference, accuracy):
        raise GateError(f"{run.where}: {reason}: the results were changed; run `atlasport verify` again")


def _own_run(artifact: Artifact) -> Run | None:
    if not (artifact.path / RESULTS / "accuracy.json").exists():
        return None
    return _run(artifact, folder_reader(artifact.path), str(artifact.path / RESULTS))


def _run(artifact: Artifact, read: Reader, where: str) -> Run:
    files: dict[str, bytes] = {}

    def results(name: str, kind: type[_File]) -> _File:
        data = read(f"{RESULTS}/{name}")
        if data is None:
            raise InputError(f"{where}: expected {name}, found none; run `atlasport verify` again")
        files[f"{RESULTS}/{name}"] = data
        try:
            parsed = kind.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = one_line(".".join(str(part) for part in first["loc"]))[:80]
            raise InputError(f"{where}: {name}: {place}: {first['msg']}; run `atlasport verify` again") from error
        expected = artifact.manifest.content_sha256
        if parsed.content_sha256 != expected:
            raise InputError(
                f"{where}: {name} is of the export {parsed.content_sha256[:12]}, this artifact is {expected[:12]}; "
                "run `atlasport verify` again, with this artifact"
            )
        return parsed

    run = Run(
        where,
        accuracy=results("accuracy.json", AccuracyFile),
        performance=results("performance.json", PerformanceFile),
        inference=results("inference.json", InferenceFile),
        environment=results("env_info.json", EnvironmentFile),
        files=files,
    )
    _check_heard(run)
    for name in ("accuracy", "performance"):
        if (data := read(f"{LOGS}/{name}.log")) is not None:
            files[f"{LOGS}/{name}.log"] = data
    parts: tuple[Subject, ...] = (run.performance, run.inference, run.environment)
    if any((part.created, part.device) != (run.accuracy.created, run.accuracy.device) for part in parts):
        raise InputError(f"{where}: its files are of different runs; run `atlasport verify` again")
    return run


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Seconds(_Part):
    duration_s: float


class _Event(_Part):
    label: str
    onset: float
    offset: float
    score: float


class _Segment(_Part):
    start: float
    end: float
    text: str


class _Speech(_Part):
    text: str
    segments: tuple[_Segment, ...]


class _Sounds(_Part):
    events: tuple[_Event, ...]


class _Heard(_Part):
    audio: _Seconds


def _check_heard(run: Run) -> None:
    """Refuse results of recordings that are no results: inference.json holds them as they were printed."""
    kinds = TypeAdapter[_Speech | _Sounds](_Speech | _Sounds)
    try:
        for golden in run.inference.golden:
            kinds.validate_python(golden.result)
        for recording in (r for engine in run.inference.engines for r in engine.recordings):
            kinds.validate_python(recording.result)
            _Heard.model_validate(recording.result)
    except ValidationError as error:
        msg = f"{run.where}: inference.json holds no results of recordings; run `atlasport verify` again"
        raise InputError(msg) from error


class _Step(_Part):
    command: str
    results: RelativePath | None


class _Summary(_Part):
    steps: tuple[_Step, ...]


class _Subject(_Part):
    model: str
    variant: str
    content_sha256: str


def _runs_of_archive(artifact: Artifact, path: Path) -> list[Run]:
    """Return the runs in an archive that are of this very artifact; there must be one."""
    read = folder_reader(path) if path.is_dir() else archive_reader(path)
    listing = read(SUMMARY_NAME)
    if listing is None:
        raise InputError(f"{path}: expected an archive of `atlasport acceptance`, found no {SUMMARY_NAME} in it")
    try:
        steps = _Summary.model_validate_json(listing).steps
    except ValidationError as error:
        raise _no_summary(path) from error
    runs, others = [], []
    for step in steps:
        if step.results is None or not _FOR_COMPARISON.isdisjoint(_words(path, step.command)):
            continue
        data = read(f"{step.results}/{RESULTS}/accuracy.json")
        if data is None:
            continue
        try:
            subject = _Subject.model_validate_json(data)
        except ValidationError as error:
            raise InputError(f"{path}: {step.results} holds no results of verify; send the archive again") from error
        if subject.content_sha256 != artifact.manifest.content_sha256:
            others.append(f"{subject.model}/{subject.variant} {subject.content_sha256[:12]}")
            continue
        runs.append(_run(artifact, _below(read, step.results), f"{path}: {step.results}"))
    if not runs:
        own = f"{artifact.content.model}/{artifact.content.variant} {artifact.manifest.content_sha256[:12]}"
        raise InputError(
            f"{path}: expected results of {own}, found {', '.join(others) or 'none'}; "
            "run `atlasport acceptance` with this very artifact"
        )
    return runs


def _words(path: Path, command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise _no_summary(path) from error


def _no_summary(path: Path) -> InputError:
    return InputError(f"{path}: {SUMMARY_NAME} is not what `atlasport acceptance` writes; send the archive again")


def _below(read: Reader, folder: str) -> Reader:
    return lambda name: read(f"{folder}/{name}")
