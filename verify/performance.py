"""Times and memory of an artifact on one engine, each engine in a process of its own.

A fresh process makes the first call a cold one, keeps another engine's memory out of the peak, and confines an engine
that dies to its own section of the results. `python -m verify.performance` is that process.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from runtime.artifact import Artifact, open_artifact
from runtime.engines import open_engine
from runtime.engines.base import DEFAULT_SETTINGS, Engine, EngineSettings
from runtime.engines.probe import Mark, Work
from runtime.errors import AtlasportError
from runtime.golden import Golden
from runtime.manifest import Case, Recording
from runtime.results import Result as RecognitionResult
from runtime.results import Transcript
from verify.environment import peak_resident_bytes, resident_bytes
from verify.families import Hearing, family_of
from verify.metrics import statistics
from verify.power import power_at_work, power_now
from verify.results import Result
from verify.timings import DeviceCost, DeviceMemory, DeviceWork, EndToEnd, EnginePerformance, Latency, Memory, Protocol

log = logging.getLogger("verify.performance")

_LEAST_RUNS = 3


class Job(Result):
    """What the process is to measure: `cases` one per graph at most, `recording` None for no end-to-end run."""

    artifact: Path
    engine: str
    device: str
    cases: tuple[str, ...]
    recording: str | None
    protocol: Protocol
    settings: EngineSettings


def measure(
    artifact: Artifact,
    engine: str,
    device: str,
    selected: set[str],
    protocol: Protocol,
    *,
    settings: EngineSettings = DEFAULT_SETTINGS,
) -> EnginePerformance:
    """Time every graph that has a selected case, and the first selected recording, in a fresh process.

    An engine that cannot run is `blocked` with the last line of what it said.
    """
    first = {case.graph: case.name for case in reversed(artifact.content.cases) if case.name in selected}
    recordings = [recording.name for recording in artifact.content.recordings if recording.name in selected]
    job = Job(
        artifact=artifact.path.resolve(),
        engine=engine,
        device=device,
        cases=tuple(first.values()),
        recording=recordings[0] if recordings else None,
        protocol=protocol,
        settings=settings,
    )
    command = [sys.executable, "-m", "verify.performance", job.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1]
        log.error("%s on %s: blocked\n%s", engine, device, done.stderr.strip())
        return EnginePerformance(engine=engine, device=device, blocked=last)
    result = EnginePerformance.model_validate_json(done.stdout.splitlines()[-1])
    _log(result)
    return result


def _log(result: EnginePerformance) -> None:
    if result.simulated:
        log.info("%s: times of a simulated device, they say nothing of a real one", result.label)
    for graph, latency in result.graphs.items():
        _log_latency(result.label, graph, latency)
    if run := result.end_to_end:
        _log_latency(result.label, f"recording {run.recording}", run.latency)
        for search, work in run.work.items():
            log.info("%s: %s: per second of audio %s", result.label, search, work)
        for part, cost in (("token", run.per_token), ("window", run.per_window)):
            if cost:
                log.info("%s: per %s of the device %s", result.label, part, cost)
        speed = "" if run.tokens_per_s is None else f", {run.tokens_per_s:.1f} tokens/s"
        log.info("%s: rtf %.4f%s", result.label, run.rtf, speed)
    if power := result.power:
        log.info("%s: %.1f W idle, %.1f W at work, by npu-smi", result.label, power.idle_w, power.mean_w)


def _log_latency(engine: str, what: str, latency: Latency) -> None:
    times = latency.latency_s
    log.info(
        "%s %s: cold %.2f ms, p50 %.2f ms, p99 %.2f ms over %d runs",
        *(engine, what, latency.cold_s * 1e3, times.p50 * 1e3, times.p99 * 1e3, len(latency.runs_s)),
    )


def run_job(job: Job) -> EnginePerformance:
    """Measure in this process."""
    before = resident_bytes()
    artifact = open_artifact(job.artifact)
    idle_w = power_now(job.device)
    start = time.perf_counter()
    graph_names = list(artifact.content.graphs)
    engine = open_engine(artifact, job.engine, job.device, job.protocol.threads, graph_names, job.settings)
    engine.synchronize()
    load_s = time.perf_counter() - start
    loaded = resident_bytes()
    try:
        graphs = {}
        golden = Golden(artifact)
        for case in artifact.content.cases:
            if case.name in job.cases:
                graphs[case.graph] = _time_graph(engine, artifact, golden, case, job.protocol)
        recording = next((r for r in artifact.content.recordings if r.name == job.recording), None)
        end_to_end = _time_recording(engine, artifact, recording, job.protocol) if recording else None
        held = engine.probe.memory()
        power = None
        if recording is not None:
            recognize = Hearing(artifact, engine).one
            power = power_at_work(job.device, idle_w, lambda: recognize(recording))
    finally:
        engine.close()
    return EnginePerformance(
        engine=job.engine,
        device=job.device,
        simulated=engine.probe.facts.simulated,
        captured=job.settings.capture,
        load_s=load_s,
        graphs=graphs,
        end_to_end=end_to_end,
        memory=Memory(before_load=before, after_load=loaded, peak=peak_resident_bytes()),
        device_memory=DeviceMemory(**asdict(held)) if held else None,
        power=power,
    )


def _time_graph(engine: Engine, artifact: Artifact, golden: Golden, case: Case, protocol: Protocol) -> Latency:
    dtypes = {spec.name: spec.dtype for spec in artifact.content.graphs[case.graph].inputs}
    inputs = {name: engine.put(array, dtypes[name]) for name, array in golden.inputs(case).items()}
    call = engine.bind(case.graph, inputs)
    probe = engine.probe
    marks: list[tuple[Mark, Mark]] = []

    def once() -> None:
        start = probe.mark()
        call({})
        marks.append((start, probe.mark()))
        engine.synchronize()

    latency = time_calls(once, protocol)
    if probe.memory() is None:  # the host's clock says the same
        return latency
    device_s = [probe.seconds(*pair) for pair in marks[-len(latency.runs_s) :]]
    return latency.model_copy(update={"device_s": statistics(device_s)})


def _time_recording(engine: Engine, artifact: Artifact, recording: Recording, protocol: Protocol) -> EndToEnd:
    recognize = Hearing(artifact, engine).one
    results: list[RecognitionResult] = []
    latency = time_calls(lambda: results.append(recognize(recording)), protocol)
    warm = results[-len(latency.runs_s) :]
    median = sorted(zip(latency.runs_s, range(len(warm)), strict=True))[len(warm) // 2][1]
    result = warm[median]
    tokens = result.n_tokens
    return EndToEnd(
        recording=recording.name,
        duration_s=result.audio.duration_s,
        tokens=tokens,
        latency=latency,
        rtf=latency.latency_s.p50 / result.audio.duration_s,
        tokens_per_s=None if tokens is None else tokens / latency.latency_s.p50,
        split_s={name: seconds for name, seconds in result.timings.items() if name.endswith("_s")},
        **({} if engine.device == "cpu" else _device_asked(artifact, engine, recording, recognize)),
    )


def _device_asked(
    artifact: Artifact, engine: Engine, recording: Recording, recognize: Callable[[Recording], RecognitionResult]
) -> dict[str, Any]:
    """Count what the device is asked for: by kind of search, by token and by window."""
    family = family_of(artifact)
    before = engine.probe.work()
    recognize(recording)
    windows, token = Work(), None
    for graph, after in engine.probe.work().items():
        work = after.since(before.get(graph, Work()))
        if graph == family.step_graph:
            token = work
        else:
            windows.add(replace(work, calls=work.calls if graph == family.window_graph else 0))
    return {
        "work": _device_work(artifact, recording, recognize),
        "per_token": _cost(token) if token else None,
        "per_window": _cost(windows),
    }


def _cost(work: Work) -> DeviceCost | None:
    """Return the mean of a call, None where there was none."""
    if not work.calls:
        return None
    return DeviceCost(
        operators=work.operators / work.calls,
        launches=work.launches / work.calls,
        copies=work.copies / work.calls,
        syncs=work.syncs / work.calls,
    )


def _device_work(
    artifact: Artifact, recording: Recording, recognize: Callable[[Recording], RecognitionResult]
) -> dict[str, DeviceWork]:
    """Count the work of each kind of search in one more recognition."""
    work = {}
    for name, options in family_of(artifact).searches(artifact).items():
        result = recognize(recording.model_copy(update={"options": recording.options | options}))
        assert isinstance(result, Transcript)
        assert result.counts is not None
        counts = result.counts
        per_s = {what: count / counts["audio_s"] for what, count in counts.items()}
        copies = per_s.pop("copies_in") + per_s.pop("copies_out")
        del per_s["audio_s"]
        work[name] = DeviceWork(copies=copies, **per_s)
    return work


def time_calls(call: Callable[[], None], protocol: Protocol) -> Latency:
    """Time `call`: once cold, then `warm_up` calls that do not count, then `runs` warm ones.

    After `budget_s` seconds no further call starts, but three warm ones are always made.
    """
    started = time.perf_counter()
    cold = _seconds(call)
    for _ in range(protocol.warm_up):
        if time.perf_counter() - started < protocol.budget_s:
            call()
    runs: list[float] = []
    least = min(_LEAST_RUNS, protocol.runs)
    while len(runs) < protocol.runs and (len(runs) < least or time.perf_counter() - started < protocol.budget_s):
        runs.append(_seconds(call))
    return Latency(cold_s=cold, runs_s=tuple(runs), latency_s=statistics(runs))


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _main() -> None:
    try:
        result = run_job(Job.model_validate_json(sys.argv[1]))
    except AtlasportError as error:
        sys.exit(str(error))
    sys.stdout.write(result.model_dump_json() + "\n")


if __name__ == "__main__":
    _main()
