"""Makes the facts of a model repository of an artifact and the results of verify alone.

Aggregates are the largest or smallest of what verify wrote, or counts; they lie in results/summary.json, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from atlasport.model_repository.evidence import Run
from atlasport.model_repository.facts import (
    Errors,
    GraphErrors,
    Machine,
    Match,
    NotCovered,
    Repository,
    Score,
    Sounds,
    Texts,
    Timing,
)
from runtime.artifact import Artifact
from runtime.bundle.manifest import Licence
from runtime.engines import ENGINES
from runtime.manifest import Content
from verify.report import share
from verify.results import (
    CaseAccuracy,
    EngineAccuracy,
    EngineSection,
    EventAccuracy,
    ForcedAccuracy,
    FrameDecisions,
    RecordingAccuracy,
)
from verify.timings import EnginePerformance

REFERENCE = "ONNX Runtime, fp32, cpu"


def repository_of(artifact: Artifact, runs: Sequence[Run], licence: Licence) -> Repository:
    """Return what may be said of an artifact by its results, which `evidence.read_runs` has let pass."""
    content = artifact.content
    main = runs[0]
    judged = [(run, engine) for run in runs for engine in run.accuracy.engines if engine.verdict == "pass"]
    languages = [str((r.reference or {}).get("language") or r.result.get("language") or "") for r in content.recordings]
    return Repository(
        content=content,
        content_sha256=artifact.manifest.content_sha256,
        licence=licence,
        runs=tuple(runs),
        machines=tuple(Machine(run, run.chips) for run in runs),
        scores=tuple(_score(content, run, engine) for run, engine in judged),
        gates=tuple((label_of(run, engine), engine) for run, engine in judged),
        graphs=tuple(graph for run, engine in judged for graph in _graph_errors(label_of(run, engine), engine)),
        timings=_timings(runs),
        performances=tuple((label_of(run, engine), engine) for run in runs for engine in _timed(run)),
        protocols=tuple((run.accuracy.device, run.performance.protocol) for run in runs if _timed(run)),
        texts=_texts(runs),
        sounds=_sounds(runs),
        languages=tuple(dict.fromkeys(filter(None, languages))),
        recordings_s=_recordings_s(main),
        not_covered=_not_covered(content, runs),
    )


def label_of(run: Run, section: EngineSection) -> str:
    """Return engine and device of a section of a run, and that it is a simulated one."""
    return f"{section.engine}, {section.device}{' (simulated)' if run.simulated else ''}"


def _score(content: Content, run: Run, engine: EngineAccuracy) -> Score:
    real = [case for case in engine.cases if case.real]
    timed = next((e.end_to_end for e in _timed(run) if (e.engine, e.device) == (engine.engine, engine.device)), None)
    spoken = [r for r in engine.recordings if isinstance(r, RecordingAccuracy)]
    heard = [r for r in engine.recordings if isinstance(r, EventAccuracy) and r.event_f1 is not None]
    golden = engine.model_copy(
        update={"recordings": tuple(r.model_copy(update={"wer": r.golden_wer, "cer": r.golden_cer}) for r in spoken)}
    )
    same = [recording.as_golden for recording in engine.recordings if not recording.blocked]
    return Score(
        label=label_of(run, engine),
        engine=engine.engine,
        device=engine.device,
        chip=run.environment.cpu_model if engine.device == "cpu" else ", ".join(run.socs),
        simulated=run.simulated,
        verdict=engine.verdict,
        reference_device=REFERENCE,
        real_weights=content.source.weights == "trained",
        weights_sha256=_weights(content),
        errors=_errors(real or engine.cases),
        on_recordings=bool(real),
        ports_limit=next((gate.limit for gate in engine.gates if gate.name == "ports.relative_l2"), None),
        top1=_top1(engine),
        recordings=Match(sum(same), len(same)) if same else None,
        error_rates=engine.error_rates,
        golden_error_rates=golden.error_rates,
        event_f1=min((r.event_f1 for r in heard if r.event_f1 is not None), default=None),
        latency_ms=timed.latency.latency_s.p50 * 1e3 if timed else None,
        rtf=timed.rtf if timed else None,
        tokens_per_s=timed.tokens_per_s if timed else None,
    )


def _weights(content: Content) -> dict[str, str]:
    """Return the SHA-256 of the checkpoint's files that hold weights; of all where none is told apart."""
    files = content.source.files
    return {name: digest for name, digest in files.items() if not name.endswith((".json", ".txt"))} or dict(files)


def _errors(cases: Iterable[CaseAccuracy]) -> Errors:
    outputs = [output for case in cases for output in case.outputs]

    def worst(metric: str, choose: Callable[..., float] = max) -> float | None:
        values = [getattr(output.difference, metric) for output in outputs]
        return None if not values or None in values else choose(values)

    return Errors(
        outputs=len(outputs),
        max_abs=worst("max_abs"),
        mean_abs=worst("mean_abs"),
        relative_l2=worst("relative_l2"),
        max_relative=worst("max_relative"),
        mean_relative=worst("mean_relative"),
        raw_mean_relative=worst("raw_mean_relative"),
        cosine=worst("cosine", min),
    )


def _top1(engine: EngineAccuracy) -> Match | None:
    forced = [run for run in engine.teacher_forced if not run.blocked]
    runs: list[ForcedAccuracy] = [run for run in forced if run.real] or forced
    frames: list[FrameDecisions] = [run for run in engine.frame_decisions if not run.blocked]
    total = sum(run.positions for run in runs) + sum(run.decisions for run in frames)
    equal = sum(run.agreed for run in runs) + sum(run.decisions - run.flipped for run in frames)
    return Match(equal, total) if total else None


def _graph_errors(label: str, engine: EngineAccuracy) -> list[GraphErrors]:
    by_graph: dict[str, list[CaseAccuracy]] = {}
    for case in engine.cases:
        if case.outputs:
            by_graph.setdefault(case.graph, []).append(case)
    return [GraphErrors(label, name, len(cases), _errors(cases)) for name, cases in by_graph.items()]


def _timed(run: Run) -> list[EnginePerformance]:
    """Return what was timed on a real device: a stand-in's times are nobody's."""
    if run.simulated:
        return []
    return [engine for engine in run.performance.engines if not engine.simulated and not engine.blocked]


def _timings(runs: Sequence[Run]) -> tuple[Timing, ...]:
    """Return all that was timed, the same operation on all engines side by side; recordings first."""
    engines = [(label_of(run, engine), engine) for run in runs for engine in _timed(run)]
    whole = [
        Timing(label, e.end_to_end.recording, e.end_to_end, e.end_to_end.latency)
        for label, e in engines
        if e.end_to_end
    ]
    graphs = [Timing(label, name, None, latency) for label, e in engines for name, latency in e.graphs.items()]
    order = list(dict.fromkeys(timing.name for timing in graphs))
    return (*whole, *sorted(graphs, key=lambda timing: order.index(timing.name)))


def _texts(runs: Sequence[Run]) -> tuple[Texts, ...]:
    found = []
    for golden in runs[0].inference.golden:
        if "text" not in golden.result:
            continue
        spoken = (golden.reference or {}).get("text")
        lines = [("reference", str(golden.result["text"]), "")]
        for run in runs:
            judged = {(label_of(run, e), r.name): r for e in run.accuracy.engines for r in e.recordings}
            for engine in run.inference.engines:
                label = label_of(run, engine)
                lines += [
                    (label, str(heard.result["text"]), _remark(judged.get((label, heard.name))))
                    for heard in engine.recordings
                    if heard.name == golden.name
                ]
        found.append(Texts(golden.name, (*lines, *([("person", str(spoken), "")] if spoken else []))))
    return tuple(found)


def _remark(recording: RecordingAccuracy | EventAccuracy | None) -> str:
    """Return what differs from the golden run, and the error rate against what was spoken where it is judged."""
    if recording is None:
        return "not judged"
    if isinstance(recording, EventAccuracy) or recording.reference is None or recording.reference.not_judged:
        return recording.remark
    kind = recording.reference.kind
    rates = (recording.wer, recording.golden_wer) if kind == "WER" else (recording.cer, recording.golden_cer)
    told = ["not run" if rate is None else share(rate) for rate in rates]
    return f"{recording.remark}; {kind} {told[0]}, of the golden text {told[1]}"


def _sounds(runs: Sequence[Run]) -> tuple[Sounds, ...]:
    return tuple(
        Sounds(
            golden.name,
            tuple(golden.result["events"]),
            tuple(found for run in runs for found in _heard(run, golden.name)),
        )
        for golden in runs[0].inference.golden
        if "events" in golden.result
    )


def _heard(run: Run, name: str) -> list[tuple[str, tuple[dict[str, Any], ...], str]]:
    remarks = {
        label_of(run, engine): recording.remark
        for engine in run.accuracy.engines
        for recording in engine.recordings
        if recording.name == name
    }
    return [
        (label_of(run, engine), tuple(recording.result["events"]), remarks.get(label_of(run, engine), "not judged"))
        for engine in run.inference.engines
        for recording in engine.recordings
        if recording.name == name
    ]


def _recordings_s(run: Run) -> float:
    """Return the seconds of all recordings, as the first engine that heard all of them says."""
    totals = [
        sum(float(recording.result["audio"]["duration_s"]) for recording in engine.recordings)
        for engine in run.inference.engines
    ]
    return round(max(totals, default=0.0), 3)


def _not_covered(content: Content, runs: Sequence[Run]) -> NotCovered:
    engines = [(label_of(run, engine), engine) for run in runs for engine in run.accuracy.engines]
    there = sorted({kind for graph in content.graphs.values() for kind in graph.files})
    passed = {ENGINES[engine.engine].format for _, engine in engines if engine.verdict == "pass"}
    return NotCovered(
        formats=tuple(kind for kind in there if kind not in passed),
        blocked=tuple((label, engine.reason) for label, engine in engines if engine.verdict != "pass"),
        controls=any(engine.controls for _, engine in engines),
        times=not any(_timed(run) for run in runs),
    )
