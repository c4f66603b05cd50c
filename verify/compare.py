"""Two results of verify side by side: what became worse, and what is heard otherwise. Nothing is run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError
from verify.inference import InferenceFile
from verify.results import EngineAccuracy, EnvironmentFile, Gate
from verify.results_folder import Results
from verify.timings import EnginePerformance
from verify.words import LOSS_LIMIT

MARGIN = 0.1


@dataclass(frozen=True)
class Change:
    """One value that is in both results; `worse`: by more than the margin."""

    name: str
    before: str
    after: str
    worse: bool

    def __str__(self) -> str:
        """Return the line that a person reads."""
        return f"{'worse: ' if self.worse else ''}{self.name}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class Comparison:
    """What two results have in common: `compared` values, those that differ, and what was not compared and why."""

    compared: int
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def worse(self) -> tuple[Change, ...]:
        """The changes that are regressions."""
        return tuple(change for change in self.changes if change.worse)


def compare_results(before: Path, after: Path, margin: float = MARGIN) -> Comparison:
    """Compare two folders of results; every engine and device that is in both.

    Parameters
    ----------
    before, after : Path
        Folders that verify wrote: an artifact's `results`, or a copy of one.
    margin : float
        How much worse a value may become: a gate by that share of its limit, times and memory by that share of
        themselves. A gate that no longer holds, or is gone, and an error rate that grew by more than 1 % of the words
        are worse whatever the margin.

    Raises
    ------
    InputError
        A folder lacks results, or the two have no engine and device in common.

    """
    if not 0 <= margin < math.inf:
        raise InputError(f"--margin: expected 0 or more, such as 0.1, found {margin}")
    old, new = Results.read_folder(before), Results.read_folder(after)
    there = {engine.label: engine for engine in new.accuracy.engines}
    pairs = [(engine, there[engine.label]) for engine in old.accuracy.engines if engine.label in there]
    if not pairs:
        found = ", ".join(engine.label for engine in old.accuracy.engines)
        raise InputError(
            f"{before}, {after}: expected an engine and device in both, found {found or 'none'} and "
            f"{', '.join(there) or 'none'}; verify both with the same --engine and --device"
        )
    notes = [f"{engine.label} is in {before} only" for engine in old.accuracy.engines if engine.label not in there]
    same_precision = old.accuracy.variant == new.accuracy.variant
    if not same_precision:
        notes.append(f"precisions are {old.accuracy.variant} and {new.accuracy.variant}: gates of both are compared")
    values = [change for pair in pairs for change in _accuracy(*pair, margin, same_gates=same_precision)]
    values += _texts(old.inference, new.inference)
    if reason := _other_machine(old.environment, new.environment):
        notes.append(f"times are not compared: {reason}")
    else:
        timed = {engine.label: engine for engine in new.performance.engines}
        for engine in old.performance.engines:
            if engine.label in timed:
                values += _times(engine, timed[engine.label], margin)
    changes = tuple(change for change in values if change.worse or change.before != change.after)
    return Comparison(len(values), changes, tuple(notes))


def _accuracy(old: EngineAccuracy, new: EngineAccuracy, margin: float, *, same_gates: bool) -> Iterator[Change]:
    yield Change(f"{new.label}, verdict", old.verdict, new.verdict, old.verdict == "pass" != new.verdict)
    found = {gate.name: gate for gate in new.gates}
    for gate in old.gates:
        name = f"{new.label}, {gate.name}"
        if gate.name in found:
            other = found[gate.name]
            yield Change(name, _gate_text(gate), _gate_text(other), _is_worse(gate, other, margin))
        elif same_gates:
            yield Change(name, _gate_text(gate), "missing", worse=True)
    for kind, rate in old.error_rates.items():
        now = new.error_rates.get(kind)
        if now is not None:
            yield Change(f"{new.label}, {kind}", f"{rate:.2%}", f"{now:.2%}", now > rate + LOSS_LIMIT)


def _is_worse(old: Gate, new: Gate, margin: float) -> bool:
    return bool(old.passed and not new.passed) or _share(new) > _share(old) + margin


def _share(gate: Gate) -> float:
    """Return how much of its limit a gate's value takes."""
    if gate.value is None:
        return math.inf
    return gate.value / gate.limit if gate.limit else (math.inf if gate.value else 0.0)


def _gate_text(gate: Gate) -> str:
    value = "not run" if gate.value is None else f"{gate.value:.3g}"
    return f"{value} of {gate.limit:.3g}"


def _texts(old: InferenceFile, new: InferenceFile) -> Iterator[Change]:
    """Return what speech is heard as; other texts are shown, and judged by gates and error rates."""
    heard = {
        (engine.label, recording.name): recording.result for engine in new.engines for recording in engine.recordings
    }
    for engine in old.engines:
        for recording in engine.recordings:
            now = heard.get((engine.label, recording.name))
            if now is not None and "text" in recording.result and "text" in now:
                name = f"{engine.label}, text of {recording.name}"
                yield Change(name, repr(recording.result["text"]), repr(now["text"]), worse=False)


def _other_machine(old: EnvironmentFile, new: EnvironmentFile) -> str | None:
    """Return why the times of two runs say nothing about the artifacts."""
    if old.simulated or new.simulated:
        return "a simulated device has none"
    for name, one, other in (
        ("processor", old.cpu_model, new.cpu_model),
        ("CPUs", old.cpus_usable, new.cpus_usable),
        ("threads", old.flags.get("threads"), new.flags.get("threads")),
    ):
        if one != other:
            return f"other {name} ({one}, {other})"
    return None


def _times(old: EnginePerformance, new: EnginePerformance, margin: float) -> Iterator[Change]:
    for graph, latency in old.graphs.items():
        if graph in new.graphs:
            p50, now = latency.latency_s.p50, new.graphs[graph].latency_s.p50
            yield _grown(f"{new.label}, {graph}, median", p50, now, margin, "s")
    if old.end_to_end and new.end_to_end and old.end_to_end.recording == new.end_to_end.recording:
        yield _grown(f"{new.label}, RTF", old.end_to_end.rtf, new.end_to_end.rtf, margin)
    if old.memory and new.memory:
        yield _grown(f"{new.label}, peak memory", old.memory.peak / 1e6, new.memory.peak / 1e6, margin, "MB")


def _grown(name: str, old: float, new: float, margin: float, unit: str = "") -> Change:
    unit = f" {unit}" if unit else ""
    more = f" ({new / old - 1:+.0%})" if old and old != new else ""
    return Change(name, f"{old:.4g}{unit}", f"{new:.4g}{unit}{more}", new > old * (1 + margin))
