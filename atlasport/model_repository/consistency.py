"""Whether times and texts of verify's results follow from what stands beside them; verdicts are verify.evidence's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from runtime.artifact import Artifact
from verify.inference import InferenceFile
from verify.metrics import statistics
from verify.results import AccuracyFile, RecordingAccuracy
from verify.timings import EnginePerformance, Latency, PerformanceFile, Statistics


def contradiction(
    artifact: Artifact, performance: PerformanceFile, inference: InferenceFile, accuracy: AccuracyFile
) -> str | None:
    """Return the first thing that does not follow from another, None where all does."""
    problems = (problem for engine in performance.engines for problem in _times(engine))
    return next(problems, None) or _golden(artifact, inference) or _texts(inference, accuracy)


def _times(engine: EnginePerformance) -> Iterator[str]:
    for name, latency in engine.graphs.items():
        if not _follows(latency):
            yield f"{engine.label}: the times of {name} are not those of its runs"
    if end := engine.end_to_end:
        p50 = end.latency.latency_s.p50
        whole = _follows(end.latency) and end.duration_s > 0 and p50 > 0
        if not whole or not _same((end.rtf,), (p50 / end.duration_s,)):
            yield f"{engine.label}: times and RTF of {end.recording} are not those of its runs"
        elif end.tokens_per_s is not None and not _same((end.tokens_per_s,), ((end.tokens or 0) / p50,)):
            yield f"{engine.label}: tokens per second of {end.recording} are not those of its runs"
    sizes = [getattr(part, name) for part in (engine.memory, engine.device_memory) if part for name in vars(part)]
    if not all(_sound(value) for value in (*sizes, engine.load_s or 0.0)):
        yield f"{engine.label}: its memory or load time is none"
    if power := engine.power:
        read = [power.idle_w, *power.busy_w]
        sound = bool(power.busy_w) and all(map(_sound, read))
        if not sound or not _same((power.mean_w, power.max_w), (fmean(power.busy_w), max(power.busy_w))):
            yield f"{engine.label}: its power is not that of its readings"


def _follows(latency: Latency) -> bool:
    """Whether statistics are those of the runs; of the device's own clock only they are kept."""
    if not latency.runs_s or not all(map(_sound, (*latency.runs_s, latency.cold_s))):
        return False
    device = list(_values(latency.device_s)) if latency.device_s else []
    return all(map(_sound, device)) and _same(_values(latency.latency_s), _values(statistics(list(latency.runs_s))))


def _values(found: Statistics) -> tuple[float, ...]:
    return tuple(getattr(found, name) for name in Statistics.model_fields)


def _sound(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _same(found: Sequence[float], expected: Sequence[float]) -> bool:
    # Another numpy may add in another order.
    return all(
        math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) for one, other in zip(found, expected, strict=True)
    )


def _golden(artifact: Artifact, inference: InferenceFile) -> str | None:
    """Whether the reference's side is the artifact's."""
    known = [(r.name, r.file, r.reference, r.result) for r in artifact.content.recordings]
    found = [(r.name, r.file, r.reference, r.result) for r in inference.golden]
    return None if found == known else "the golden results are not those of the artifact"


def _texts(inference: InferenceFile, accuracy: AccuracyFile) -> str | None:
    golden = {recording.name: recording.result.get("text") for recording in inference.golden}
    judged = {(e.engine, e.device, r.name): r for e in accuracy.engines for r in e.recordings}
    for engine in inference.engines:
        for heard in engine.recordings:
            found = judged.get((engine.engine, engine.device, heard.name))
            if found is None or heard.name not in golden:
                return f"{engine.label}: the result of {heard.name[:40]!r} was judged nowhere"
            if not isinstance(found, RecordingAccuracy) or found.text_equal is None:
                continue
            if found.text_equal != (heard.result.get("text") == golden[heard.name]):
                return f"{engine.label}: the text of {heard.name} is not the one that was judged"
    return None
