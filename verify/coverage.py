"""What a verification covered and what it did not, in words, and the commands that repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from runtime.engines import ENGINES
from runtime.manifest import Content, Recording
from verify.results import EngineAccuracy
from verify.results_folder import Results


def covered(content: Content, results: Results) -> list[tuple[str, str]]:
    """Return pairs of a heading and what was covered under it; the last ones say what was not."""
    judged = [engine for engine in results.accuracy.engines if engine.gates]
    pairs = [("engines", ", ".join(engine.label for engine in judged) or "none")]
    pairs += [(f"on {engine.label}" if judged[1:] else "ran", _ran(content, results, engine)) for engine in judged]
    heard = {name for engine in judged for name in _heard(results, engine)}
    recordings = [recording for recording in content.recordings if recording.name in heard]
    if recordings:
        pairs.append(("options", _options(recordings)))
    pairs.append(("not covered", _left_out(content, recordings, judged)))
    return pairs


def _ran(content: Content, results: Results, engine: EngineAccuracy) -> str:
    cases = [case for case in engine.cases if case.outputs]
    graphs = len({case.graph for case in cases})
    heard = _heard(results, engine)
    recordings = [recording for recording in content.recordings if recording.name in heard]
    parts = [
        f"{len(cases)} of {len(content.cases)} golden cases, {graphs} of {len(content.graphs)} graphs",
        f"{len(recordings)} of {len(content.recordings)} recordings",
    ]
    languages = _languages(recordings)
    if languages:
        parts.append(f"{len(languages)} language{'s' if languages[1:] else ''} ({', '.join(languages)})")
    lengths = [result["audio"]["duration_s"] for result in heard.values() if "audio" in result]
    if lengths:
        parts.append(f"{sum(lengths):.0f} s, the longest {max(lengths):.0f} s")
    return ", ".join(parts)


def _heard(results: Results, engine: EngineAccuracy) -> dict[str, dict[str, Any]]:
    sections = (section for section in results.inference.engines if section.label == engine.label)
    return {recording.name: recording.result for section in sections for recording in section.recordings}


def _languages(recordings: Sequence[Recording]) -> list[str]:
    found = [(recording.reference or {}).get("language", recording.result.get("language")) for recording in recordings]
    return sorted({language for language in found if language})


def _options(recordings: Sequence[Recording]) -> str:
    """Say which options were set, and in which recordings if not in all."""
    by_value: dict[str, list[str]] = {}
    for recording in recordings:
        for name, value in recording.options.items():
            by_value.setdefault(f"{name} {value}", []).append(recording.name)
    said = [
        option if len(names) == len(recordings) else f"{option} ({', '.join(names)})"
        for option, names in by_value.items()
    ]
    return "; ".join([*said, "else the model's own"])


def _left_out(content: Content, recordings: Sequence[Recording], judged: Sequence[EngineAccuracy]) -> str:
    ran = {engine.engine for engine in judged}
    formats = {written for graph in content.graphs.values() for written in graph.files}
    idle = [name for name, entry in ENGINES.items() if entry.format in formats and name not in ran]
    missed = [recording.name for recording in content.recordings if recording not in recordings]
    parts = [f"the engine{'s' if idle[1:] else ''} {', '.join(idle)}"] if idle else []
    if missed:
        parts.append(f"the recording{'s' if missed[1:] else ''} {', '.join(missed)}")
    return ", ".join([*parts, "other devices, languages and options, longer recordings"])


def commands(content: Content, results: Results) -> list[str]:
    """Return what to type to repeat a verification, and to check its golden outputs, beside the artifacts' folder."""
    accuracy = results.accuracy
    artifact = f"artifacts/{content.model}/{content.variant}"
    verify = ["atlasport", "verify", artifact, "--device", accuracy.device]
    engines = {engine.engine for engine in accuracy.engines}
    if len(engines) == 1:
        verify += ["--engine", *engines]
    if accuracy.selection:
        verify += ["--cases", ",".join(accuracy.selection)]
    if (threads := accuracy.flags.get("threads", "")).isdigit():
        verify += ["--threads", threads]
    if accuracy.flags.get("deterministic") == "true":
        verify += ["--deterministic"]
    weights = content.source.repo or "CHECKPOINT"
    source = ["atlasport", "verify", artifact, "--source", weights]
    return [shlex.join(verify), *([shlex.join(source)] if content.source.weights != "random" else [])]
