"""Verifies an artifact: integrity, the gates on every engine, times, results files, logs and the report."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from runtime.artifact import Artifact, open_artifact
from runtime.ascend import AscendFacts, ascend_facts
from runtime.engines.base import DEFAULT_SETTINGS, EngineSettings
from runtime.errors import EnvironmentNotFitError, ExitCode, InputError
from runtime.manifest import SourceParity
from verify import environment
from verify.accuracy import verify_engine
from verify.case_results import read_cases
from verify.devices import (
    ascend_json,
    engines_on_devices,
    overall_of_devices,
    verify_on_device,
)
from verify.golden import select
from verify.inference import EngineInference, GoldenRecording, InferenceFile
from verify.performance import measure
from verify.report import REPORT_NAME, render_report
from verify.results import AccuracyFile, EngineAccuracy, EnvironmentFile, ParitySummary, Subject, Verdict
from verify.results_folder import LOGS, RESULTS, Results, check_writable, write_files
from verify.subject import facts_of, subject_of
from verify.timings import PerformanceFile, Protocol

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
    settings: EngineSettings = DEFAULT_SETTINGS,
    restart: bool = False,
    locate: bool = False,
    reference: Artifact | None = None,
    progress: Callable[[str], None] | None = None,
) -> VerifyResult:
    """Verify the artifact in folder `path` and write results, logs and report into it.

    Parameters
    ----------
    path : Path
        The artifact's folder.
    device : str
        `cpu`, `cuda:N` or `npu:N`; several with commas between them, each of which must verify.
    engines : sequence of str, optional
        Engines to run; all that the artifact has graphs for and that run on the device by default.
    cases : sequence of str, optional
        Names or patterns (`step_*`) of cases, teacher-forced runs and recordings; all by default.
    runs : int
        Warm runs that are timed for each operation; 0 leaves the times out.
    threads : int, optional
        Threads within an operator; the engine's own choice by default.
    controls : bool
        Inject known bugs too, and fail unless every one is caught.
    settings : EngineSettings
        How the device is used.
    restart : bool
        Verify an engine whose device failed once more, in a fresh process.
    locate : bool
        Search for where an engine leaves the reference: layer and operator.
    reference : Artifact, optional
        Has the ONNX graphs that it leaves, in fp32; the artifact itself by default.
    progress : callable, optional
        Called with one line at a time.

    Raises
    ------
    InputError
        Not an artifact, or an engine, device or case that it does not have.
    DamagedArtifactError
        A file of the artifact is not the exported one.
    EnvironmentNotFitError
        A device is missing, or the results cannot be written, or `locate` lacks a package.

    """
    if locate and (missing := [package for package in ("onnx", "onnxruntime") if find_spec(package) is None]):
        names = " ".join(missing)
        raise EnvironmentNotFitError(f"--locate: needs onnx and onnxruntime, found no {names}; pip install {names}")
    artifact = open_artifact(path)
    artifact.check_whole()
    chosen_pairs = engines_on_devices(artifact, device, engines)
    patterns = None if cases is None else tuple(cases)
    selected = select(artifact, patterns)
    if runs < 0:
        raise InputError(f"runs: expected 0 or more, found {runs}")
    if controls and patterns:
        raise InputError("controls: expected all cases, found a selection; leave out one of the two")
    check_writable(path)
    load_average = environment.load_average()
    verify_one = partial(
        verify_engine,
        artifact,
        selected=selected,
        threads=threads,
        controls=controls,
        settings=settings,
        reference=(reference or artifact) if locate else None,
    )
    with _set_aside(path / RESULTS / "accuracy.json"):
        with _logged("accuracy", progress) as accuracy_log:
            pairs = [verify_on_device(partial(verify_one, name, d), restart=restart) for name, d in chosen_pairs]
        ascend = ascend_facts() if "npu" in device else None
        subject = subject_of(
            artifact, device, threads, patterns, sections=[judged for judged, _ in pairs], ascend=ascend
        )
        accuracy = _accuracy_file(artifact, subject, [judged for judged, _ in pairs])
        protocol = Protocol(warm_up=WARM_UP, runs=runs, budget_s=BUDGET_S, threads=threads)
        with _logged("performance", progress) as performance_log:
            opened = [(judged.engine, judged.device) for judged in accuracy.engines if judged.gates]
            timed = (
                [measure(artifact, name, d, selected, protocol, settings=settings) for name, d in opened]
                if runs
                else []
            )
        results = Results(
            accuracy=accuracy,
            performance=PerformanceFile(**facts_of(subject), protocol=protocol, engines=tuple(timed)),
            inference=_inference_file(artifact, subject, [texts for _, texts in pairs]),
            environment=_environment_file(subject, load_average, ascend),
        )
        _write(artifact, results, {"accuracy": accuracy_log.getvalue(), "performance": performance_log.getvalue()})
    return VerifyResult(accuracy.verdict, path / REPORT_NAME, Results.read(artifact))


@contextmanager
def _set_aside(file: Path) -> Iterator[None]:
    """Take an older verdict away: it is none of a run that is killed. Where the run gives up, it comes back."""
    aside = file.with_name(f".{file.name}.before")
    aside.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        file.replace(aside)
    try:
        yield
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            aside.replace(file)
        raise
    aside.unlink(missing_ok=True)


def _accuracy_file(artifact: Artifact, subject: Subject, engines: list[EngineAccuracy]) -> AccuracyFile:
    return AccuracyFile(
        **facts_of(subject),
        verdict=overall_of_devices(engines),
        summary="; ".join(f"{engine.label}: {engine.verdict}, {engine.reason}" for engine in engines),
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
    return InferenceFile(**facts_of(subject), golden=golden, engines=tuple(engines))


def _environment_file(subject: Subject, load_average: float, ascend: AscendFacts | None) -> EnvironmentFile:
    return EnvironmentFile(
        **facts_of(subject),
        system=environment.system(),
        cpu_model=environment.cpu_model(),
        instruction_sets=environment.instruction_sets(),
        cpu_count=environment.cpu_count(),
        cpus_usable=environment.cpus_usable(),
        memory_bytes=environment.memory_bytes(),
        load_average=load_average,
        variables=environment.variables(),
        ascend=ascend_json(ascend),
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


def _write(artifact: Artifact, results: Results, logs: dict[str, str]) -> None:
    cases = read_cases(artifact.path, artifact.manifest.content_sha256)
    write_files(
        artifact.path,
        {
            f"{RESULTS}/accuracy.json": results.accuracy.model_dump_json(indent=1),
            f"{RESULTS}/performance.json": results.performance.model_dump_json(indent=1),
            f"{RESULTS}/inference.json": results.inference.model_dump_json(indent=1),
            f"{RESULTS}/env_info.json": results.environment.model_dump_json(indent=1),
            REPORT_NAME: render_report(artifact, results, cases),
            **{f"{LOGS}/{name}.log": text for name, text in logs.items()},
        },
    )
