"""Verifies an artifact: integrity, the gates on every engine, times, results files, logs and the report."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from runtime.artifact import Artifact, open_artifact
from runtime.engines import ENGINES, engines_of
from runtime.errors import EnvironmentNotFitError, ExitCode, InputError
from runtime.manifest import SourceParity
from verify import environment
from verify.accuracy import verify_engine
from verify.gates import overall
from verify.golden import select
from verify.performance import measure
from verify.report import REPORT_NAME, RESULTS, Results, render_report
from verify.results import (
    AccuracyFile,
    EngineAccuracy,
    EngineInference,
    EnvironmentFile,
    GoldenRecording,
    InferenceFile,
    ParitySummary,
    PerformanceFile,
    Protocol,
    Subject,
    Verdict,
)

LOGS = "logs"
RUNS = 20
WARM_UP = 2
BUDGET_S = 20.0


@dataclass(frozen=True)
class VerifyResult:
    """What verify found; the same facts lie in the artifact's `results` folder."""

    verdict: Verdict
    report: Path
    results: Results

    def __bool__(self) -> bool:
        """Return whether the artifact is verified."""
        return self.verdict == "pass"

    @property
    def summary(self) -> str:
        """The verdict's reason, engine by engine."""
        return self.results.accuracy.summary

    @property
    def exit_code(self) -> ExitCode:
        """What the command line leaves with."""
        codes = {"pass": ExitCode.OK, "fail": ExitCode.GATE_FAILED, "blocked": ExitCode.ENVIRONMENT}
        return codes[self.verdict]


def verify_artifact(
    path: Path,
    *,
    device: str = "cpu",
    engines: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    runs: int = RUNS,
    threads: int | None = None,
    controls: bool = False,
    progress: Callable[[str], None] | None = None,
) -> VerifyResult:
    """Verify the artifact in folder `path` and write results, logs and report into it.

    Parameters
    ----------
    path : Path
        The artifact's folder.
    device : str
        `cpu`, `cuda:N` or `npu:N`.
    engines : sequence of str, optional
        Engines to run; all that the artifact has graphs for by default.
    cases : sequence of str, optional
        Names or patterns (`step_*`) of cases, teacher-forced runs and recordings; all by default.
    runs : int
        Warm runs that are timed for each operation; 0 leaves the times out.
    threads : int, optional
        Threads within an operator; the engine's own choice by default.
    controls : bool
        Inject known bugs too, and fail unless every one is caught.
    progress : callable, optional
        Called with one line at a time.

    Raises
    ------
    InputError
        Not an artifact, or an engine, device or case that it does not have.
    DamagedArtifactError
        A file of the artifact is not the exported one.
    EnvironmentNotFitError
        The results cannot be written.

    """
    artifact = open_artifact(path)
    names = _engine_names(artifact, engines)
    patterns = None if cases is None else tuple(cases)
    selected = select(artifact, patterns)
    if runs < 0:
        raise InputError(f"runs: expected 0 or more, found {runs}")
    if controls and patterns:
        raise InputError("controls: expected all cases, found a selection; leave out one of the two")
    _check_writable(path)
    load_average = environment.load_average()
    subject = _subject(artifact, device, threads, patterns)
    with _logged("accuracy", progress) as accuracy_log:
        pairs = [
            verify_engine(artifact, name, device, selected=selected, threads=threads, controls=controls)
            for name in names
        ]
    accuracy = _accuracy_file(artifact, subject, [judged for judged, _ in pairs])
    protocol = Protocol(warm_up=WARM_UP, runs=runs, budget_s=BUDGET_S, threads=threads)
    with _logged("performance", progress) as performance_log:
        opened = [judged.engine for judged in accuracy.engines if judged.gates]
        timed = [measure(artifact, name, device, selected, protocol) for name in opened] if runs else []
    results = Results(
        accuracy=accuracy,
        performance=PerformanceFile(**_facts(subject), protocol=protocol, engines=tuple(timed)),
        inference=_inference_file(artifact, subject, [texts for _, texts in pairs]),
        environment=_environment_file(subject, load_average),
    )
    _write(artifact, results, {"accuracy": accuracy_log.getvalue(), "performance": performance_log.getvalue()})
    return VerifyResult(accuracy.verdict, path / REPORT_NAME, Results.read(artifact))


def _engine_names(artifact: Artifact, engines: Sequence[str] | None) -> list[str]:
    there = engines_of(artifact)
    for name in engines or ():
        if name not in there:
            known = "the artifact has no graphs for it" if name in ENGINES else "there is no such engine"
            msg = f"engine {name!r}: {known}; {artifact.path} runs on {', '.join(there) or 'none'}"
            raise InputError(msg)
    return list(dict.fromkeys(engines)) if engines else there


def _subject(artifact: Artifact, device: str, threads: int | None, patterns: tuple[str, ...] | None) -> Subject:
    content = artifact.content
    return Subject(
        model=content.model,
        variant=content.variant,
        weights=content.source.weights,
        content_sha256=artifact.manifest.content_sha256,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=device,
        versions=environment.versions(),
        flags={"threads": "engine's choice" if threads is None else str(threads), **environment.variables()},
        selection=patterns,
    )


def _facts(subject: Subject) -> dict[str, Any]:
    return {name: getattr(subject, name) for name in Subject.model_fields}


def _accuracy_file(artifact: Artifact, subject: Subject, engines: list[EngineAccuracy]) -> AccuracyFile:
    return AccuracyFile(
        **_facts(subject),
        verdict=overall([engine.verdict for engine in engines]),
        summary="; ".join(f"{engine.engine}: {engine.verdict}, {engine.reason}" for engine in engines),
        engines=tuple(engines),
        source_parity=_parity(artifact.content.parity),
    )


def _parity(parity: SourceParity) -> ParitySummary | None:
    if not parity.outputs:
        return None
    worst = max(parity.outputs, key=lambda output: output.relative_l2)
    return ParitySummary(
        implementation=parity.implementation,
        outputs=len(parity.outputs),
        worst=f"{worst.case} {worst.output}",
        relative_l2=worst.relative_l2,
        limit=parity.limit_relative_l2,
        results_equal=sum(parity.results_equal.values()),
        results=len(parity.results_equal),
    )


def _inference_file(artifact: Artifact, subject: Subject, engines: list[EngineInference]) -> InferenceFile:
    golden = tuple(
        GoldenRecording(name=r.name, file=r.file, reference=r.reference, result=r.result)
        for r in artifact.content.recordings
    )
    return InferenceFile(**_facts(subject), golden=golden, engines=tuple(engines))


def _environment_file(subject: Subject, load_average: float) -> EnvironmentFile:
    return EnvironmentFile(
        **_facts(subject),
        system=environment.system(),
        cpu_model=environment.cpu_model(),
        cpu_count=environment.cpu_count(),
        cpus_usable=environment.cpus_usable(),
        memory_bytes=environment.memory_bytes(),
        load_average=load_average,
        variables=environment.variables(),
    )


@contextmanager
def _logged(name: str, progress: Callable[[str], None] | None) -> Iterator[io.StringIO]:
    """Collect the lines of logger `verify.<name>`, and pass each message on to `progress`."""
    logger = logging.getLogger(f"verify.{name}")
    text = io.StringIO()
    handlers: list[logging.Handler] = [logging.StreamHandler(text)]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    if progress is not None:
        handlers.append(_LineHandler(progress))
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield text
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
        logger.level, logger.propagate = before


class _LineHandler(logging.Handler):
    """Passes messages on without tracebacks."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one message on."""
        self._progress(record.getMessage().splitlines()[0])


def _check_writable(path: Path) -> None:
    """Fail before the work, not after it."""
    try:
        (path / RESULTS).mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path / RESULTS):
            (path / LOGS).mkdir(exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> EnvironmentNotFitError:
    reason = error.strerror or str(error)
    return EnvironmentNotFitError(f"{path}: expected room and permission for results, found {reason}; make some")


def _write(artifact: Artifact, results: Results, logs: dict[str, str]) -> None:
    """Write every file beside its place first, then move them there: a full disk leaves the old ones."""
    folder = artifact.path
    files = {
        folder / RESULTS / "accuracy.json": results.accuracy.model_dump_json(indent=1),
        folder / RESULTS / "performance.json": results.performance.model_dump_json(indent=1),
        folder / RESULTS / "inference.json": results.inference.model_dump_json(indent=1),
        folder / RESULTS / "env_info.json": results.environment.model_dump_json(indent=1),
        folder / REPORT_NAME: render_report(artifact, results),
        **{folder / LOGS / f"{name}.log": text for name, text in logs.items()},
    }
    try:
        with tempfile.TemporaryDirectory(dir=folder / RESULTS, prefix=".new-") as new:
            for number, text in enumerate(files.values()):
                Path(new, str(number)).write_text(text, encoding="utf-8")
            for number, place in enumerate(files):
                Path(new, str(number)).replace(place)
    except OSError as error:
        raise _unwritable(folder, error) from error
