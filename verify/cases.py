"""Hears a user's recordings with an artifact's engines and with the reference, and counts errors against people's word.

No gate judges these recordings: people's transcripts and annotations have errors of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.annotations import annotation_of, recordings_in
from runtime.artifact import Artifact, open_artifact
from runtime.ascend import ascend_facts
from runtime.audio import open_audio
from runtime.engines import engines_of, open_engine
from runtime.engines.base import DEFAULT_SETTINGS, EngineSettings
from runtime.errors import (
    DamagedArtifactError,
    DeviceFailedError,
    EnvironmentNotFitError,
    ExitCode,
    InputError,
    NoDeviceError,
)
from runtime.families import family_of
from runtime.memory import release_memory
from runtime.results import Result, SoundEvents, Transcript
from runtime.spoken import error_counts, has_words
from verify.bootstrap import Part, change, estimate
from verify.case_results import NAME, CaseRecording, CasesFile, EngineCases, HeardCase
from verify.devices import engines_on_devices
from verify.events import event_counts, segment_counts, sounds
from verify.report import REPORT_NAME, render_cases, render_report
from verify.results_folder import RESULTS, Results, check_writable, write_files
from verify.subject import facts_of, subject_of


@dataclass(frozen=True)
class CasesResult:
    """What was heard; the same lies in the artifact's results/cases.json."""

    cases: CasesFile
    report: Path

    @property
    def exit_code(self) -> ExitCode:
        """What the command line leaves with."""
        engines = self.cases.engines
        if any(engine.blocked for engine in engines if not engine.is_reference or not engines[1:]):
            return ExitCode.ENVIRONMENT
        return ExitCode.BAD_INPUT if self.cases.unreadable else ExitCode.OK


def hear_cases(
    path: Path,
    recordings: Path,
    *,
    device: str = "cpu",
    engines: Sequence[str] | None = None,
    threads: int | None = None,
    settings: EngineSettings = DEFAULT_SETTINGS,
    restart: bool = False,
    progress: Callable[[str], None] = lambda _line: None,
) -> CasesResult:
    """Hear a folder's recordings with the artifact in folder `path`; write results/cases.json and the report.

    The reference is ONNX Runtime on the CPU, of the same weights in fp32 where they lie beside the artifact, else of
    the artifact. The verdict of the artifact, if it has one, stays as it is.

    Parameters
    ----------
    path, recordings : Path
        The folders of the artifact, and of recordings with annotations beside them (see `annotation_of`).
    device, engines, threads, settings, restart
        As of `verify_artifact`.
    progress : callable
        Called with one line at a time.

    Raises
    ------
    InputError
        Not an artifact; an engine or device that it does not have; no recordings, or none with an annotation of what
        the model tells; an annotation that is none.
    EnvironmentNotFitError
        A device is missing, or the results cannot be written.

    """
    artifact = open_artifact(path)
    golden = _in_fp32(artifact)
    pairs = engines_on_devices(artifact, device, engines)
    annotated = _annotated(artifact, recordings)
    check_writable(path)
    hearing = _Hearing(annotated, _labels(annotated), threads, progress)
    sections = [hearing.reference(golden)] if "onnxruntime" in engines_of(golden) else []
    sections += [
        hearing.engine(artifact, *pair, settings, restart=restart)
        for pair in pairs
        if not (golden is artifact and pair == ("onnxruntime", "cpu"))
    ]
    ascend = ascend_facts() if "npu" in device else None
    cases = CasesFile(
        **facts_of(subject_of(artifact, device, threads, (str(recordings),), sections=sections, ascend=ascend)),
        folder=str(recordings),
        labels=hearing.labels,
        recordings=tuple(
            CaseRecording(name=file.name, annotation=said, unreadable=hearing.unreadable.get(file.name))
            for file, said in annotated.items()
        ),
        engines=tuple(_rated(sections, hearing.unreadable)),
    )
    write_files(path, {f"{RESULTS}/{NAME}": cases.model_dump_json(indent=1), REPORT_NAME: _report(artifact, cases)})
    return CasesResult(cases, path / REPORT_NAME)


def _in_fp32(artifact: Artifact) -> Artifact:
    """Return the artifact of the same checkpoint in fp32 that lies beside this one, else this one."""
    if artifact.content.variant == "fp32":
        return artifact
    try:
        beside = open_artifact(artifact.path.parent / "fp32")
    except (InputError, DamagedArtifactError):
        return artifact
    return beside if beside.content.source.files == artifact.content.source.files else artifact


def _annotated(artifact: Artifact, folder: Path) -> dict[Path, dict[str, Any] | None]:
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of recordings, found none; name one that is there")
    found = {file: annotation_of(file) for file in recordings_in(folder)}
    hears_sounds = any("events" in recording.result for recording in artifact.content.recordings)
    key, example = ("events", "events (a.tsv") if hears_sounds else ("text", "a transcript (a.txt")
    if not any(said and said.get(key) is not None for said in found.values()):
        raise InputError(
            f"{folder}: expected {example} beside a.wav) of at least one recording, found none; "
            f"{artifact.content.model} hears {'sounds' if hears_sounds else 'speech'}"
        )
    return found


def _labels(annotated: Mapping[Path, dict[str, Any] | None]) -> tuple[str, ...]:
    """Return the classes of sounds that somebody listened for: those that an annotation has."""
    return tuple(sorted({event["label"] for said in annotated.values() for event in (said or {}).get("events", ())}))


@dataclass
class _Hearing:
    """Hears recordings with one engine after another; `unreadable` collects those that none can, and why."""

    annotated: Mapping[Path, dict[str, Any] | None]
    labels: tuple[str, ...]
    threads: int | None
    progress: Callable[[str], None]

    def __post_init__(self) -> None:
        self.unreadable: dict[str, str] = {}

    def reference(self, golden: Artifact) -> EngineCases:
        """Hear them as golden outputs are made, by ONNX Runtime on the CPU."""
        return self.engine(golden, "onnxruntime", "cpu").model_copy(update={"is_reference": True})

    def engine(
        self,
        artifact: Artifact,
        name: str,
        device: str,
        settings: EngineSettings = DEFAULT_SETTINGS,
        *,
        restart: bool = False,
    ) -> EngineCases:
        """Hear them; with `restart` once more from the start where the device failed."""
        section = EngineCases(engine=name, device=device, variant=artifact.content.variant)
        try:
            return self._heard(artifact, section, settings)
        except NoDeviceError:
            raise
        except EnvironmentNotFitError as error:
            if restart and isinstance(error, DeviceFailedError):
                return self.engine(artifact, name, device, settings)
            return section.model_copy(update={"blocked": str(error)})

    def _heard(self, artifact: Artifact, section: EngineCases, settings: EngineSettings) -> EngineCases:
        family = family_of(artifact)
        engine = open_engine(artifact, section.engine, section.device, self.threads, settings=settings)
        try:
            recognizer, options = family.open(artifact, engine, None), family.options.parse({})
            recordings = []
            for number, (file, said) in enumerate(self.annotated.items(), 1):
                self.progress(f"{section.title}: {file.name}, {number} of {len(self.annotated)}")
                if file.name in self.unreadable:
                    continue
                try:
                    result = recognizer.recognize(open_audio(file), options)
                except InputError as error:
                    self.unreadable[file.name] = str(error)
                    continue
                counts = counts_of(said or {}, result, self.labels)
                recordings.append(HeardCase(name=file.name, result=result.to_json(), counts=counts))
            facts = engine.probe.facts
        finally:
            engine.close()
            release_memory()
        said_of_device = {"simulated": facts.simulated, "flags": dict(facts.flags), "versions": dict(facts.versions)}
        return section.model_copy(update={"recordings": tuple(recordings), **said_of_device})


def counts_of(said: Mapping[str, Any], result: Result, labels: Sequence[str]) -> dict[str, Part]:
    """Return by rate what a recording adds to it: errors and words, or agreed and all events, or segments.

    Parameters
    ----------
    said : mapping
        The annotation.
    result : Result
        What was heard.
    labels : sequence of str
        Classes that are annotated; nobody listened for others, and they are not counted.

    """
    if isinstance(result, Transcript) and said.get("text") is not None:
        counts = error_counts(said["text"], result.text)
        words = {"WER": (counts.word_errors, counts.words)} if has_words(said.get("language")) else {}
        return {**words, "CER": (counts.character_errors, counts.characters)}
    if isinstance(result, SoundEvents) and "events" in said:
        expected = sounds(said["events"])
        found = [sound for sound in sounds(result.to_json()["events"]) if sound.label in labels]
        return {"event-F1": event_counts(expected, found), "segment-F1": segment_counts(expected, found)}
    return {}


def _rated(sections: Sequence[EngineCases], unreadable: Mapping[str, str]) -> list[EngineCases]:
    """Return the sections with their rates, over the recordings that every engine could read."""
    read = [
        section.model_copy(update={"recordings": tuple(r for r in section.recordings if r.name not in unreadable)})
        for section in sections
    ]
    reference = next((_parts(section) for section in read if section.is_reference and not section.blocked), {})
    return [_with_rates(section, {} if section.is_reference else reference) for section in read]


def _with_rates(section: EngineCases, reference: Mapping[str, Sequence[Part]]) -> EngineCases:
    parts = _parts(section)
    rates = {name: found for name, counted in parts.items() if (found := estimate(counted))}
    changes = {name: found for name in reference if name in parts and (found := change(reference[name], parts[name]))}
    return section.model_copy(update={"rates": rates, "changes": changes})


def _parts(section: EngineCases) -> dict[str, list[Part]]:
    parts: dict[str, list[Part]] = {}
    for recording in section.recordings:
        for name, counted in recording.counts.items():
            parts.setdefault(name, []).append(counted)
    return parts


def _report(artifact: Artifact, cases: CasesFile) -> str:
    try:
        results = Results.read(artifact)
    except InputError:  # not verified yet
        return render_cases(artifact, cases)
    return render_report(artifact, results, cases)
