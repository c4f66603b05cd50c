"""The gates of DESIGN.md: what was measured goes in, `Gate` and `Verdict` come out. Nothing here runs a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.differences import STRUCTURE, Difference, compare
from runtime.engines.base import Floats
from runtime.manifest import Tolerances, Variant
from runtime.spoken import LARGEST_RATE
from verify.metrics import kl_divergence, top2_margin
from verify.results import (
    CaseAccuracy,
    Control,
    EventAccuracy,
    ForcedAccuracy,
    FrameDecisions,
    Gate,
    OutputAccuracy,
    RecordingAccuracy,
    Verdict,
)

KL_LIMIT = 1e-3  # nats
HEAD_LIMIT = 1e-4  # of gate 1: the host computes in float32 for every variant
EVENT_LIMIT = 0.01  # 1 - F1
TAG_LIMIT = 0.02  # that of a score beside its threshold
_LISTED = 3  # places that a note names

# What each gate asks, in the order of reports.
QUESTIONS = {
    "structure.relative_l2": "fp32 graphs: relative L2 error of every output",
    "structure.max_relative": "fp32 graphs: largest error over largest value, every output",
    "structure.head": "scores that the host makes of logits: largest relative error against float64",
    "precision.relative_l2": "graphs below fp32: relative L2 error of every output",
    "precision.mean_relative": "graphs below fp32: mean relative error, denominator at least 1 % of the largest value",
    "decisions.tokens": "teacher-forced tokens that flipped though the golden margin was decisive",
    "decisions.kl": "teacher-forced KL divergence from the golden distribution, worst position, nats",
    "decisions.scores": "scores on the other side of a threshold, though the golden one was not within 0.02 of it",
    "decisions.frames": "classes whose highest score moved to a frame where the golden one was over 0.02 below its own",
    "task.text": "recordings whose text differs from the golden run",
    "task.times": "recordings whose segment times differ from the golden run",
    "task.tokens": "recordings whose text tokens differ from the golden run",
    "task.events": "1 - event-F1 (200 ms collar) against the events of the golden run, worst recording",
    "task.tags": "largest difference of a tag's score from the golden run",
    "task.reference": "error rate of a golden text against what people say was spoken, worst recording that is judged",
    "overflow.non_finite": "values that are NaN or infinite",
    "overflow.at_limit": "values at the largest magnitude of their dtype",
    "controls.missed": "injected faults that no gate, or the wrong gate, caught",
}
# What only one kind of result has.
TEXT_GATES = frozenset({"decisions.tokens", "decisions.kl", "task.text", "task.times", "task.tokens", "task.reference"})
SOUND_GATES = frozenset({"structure.head", "decisions.scores", "decisions.frames", "task.events", "task.tags"})


@dataclass(frozen=True)
class _Measured:
    """One value and its place; None where it could not be measured."""

    where: str
    value: float | None


def allowed_logit_error(golden: Floats, tolerances: Tolerances) -> Floats:
    """Return the largest logit error that gates 1 and 2 would let pass, per row of golden logits [n, V].

    With the measured error instead, "equal tokens where the margin exceeds 2 max|d|" holds for any two arrays, broken
    ones too: an error below half the margin cannot move the best token. The allowed error makes it a test.
    """
    share = tolerances.relative_l2 if tolerances.max_relative is None else tolerances.max_relative
    allowed: Floats = np.float32(share) * np.abs(golden).max(axis=-1)
    return allowed


def judge_forced(name: str, golden: Floats, actual: Floats, tolerances: Tolerances) -> ForcedAccuracy:
    """Compare teacher-forced logits [n, V] f32 with the golden ones."""
    agree = golden.argmax(axis=-1) == actual.argmax(axis=-1)
    margin = top2_margin(golden)
    decisive = margin > 2 * allowed_logit_error(golden, tolerances)
    divergence = kl_divergence(golden, actual)
    return ForcedAccuracy(
        name=name,
        positions=len(golden),
        decided=int(decisive.sum()),
        flipped=int((decisive & ~agree).sum()),
        agreed=int(agree.sum()),
        kl_max=float(divergence.max()),
        kl_mean=float(divergence.mean()),
        least_margin=float(margin.min()),
        flipped_margin=float(margin[~agree].max(initial=0)),
        difference=compare(actual, golden, "float32"),
    )


def gates_of(
    cases: Sequence[CaseAccuracy],
    decisions: Sequence[ForcedAccuracy | FrameDecisions],
    recordings: Sequence[RecordingAccuracy | EventAccuracy],
    variant: Variant,
    tolerances: Tolerances,
) -> tuple[Gate, ...]:
    """Return the gates for what was measured on one engine; a gate that nothing was chosen for is left out."""
    fp32 = [case for case in cases if not case.precision]
    lower = [case for case in cases if case.precision]
    forced = [run for run in decisions if isinstance(run, ForcedAccuracy)]
    scores = [run for run in decisions if isinstance(run, FrameDecisions)]
    structure = tolerances if variant == "fp32" else STRUCTURE
    gates = [
        _worst("structure.relative_l2", structure.relative_l2, _outputs(fp32, lambda d: d.relative_l2)),
        _worst("structure.max_relative", structure.max_relative, _outputs(fp32, lambda d: d.max_relative)),
        _worst("precision.relative_l2", tolerances.relative_l2, _outputs(lower, lambda d: d.relative_l2)),
        _worst("precision.mean_relative", tolerances.mean_relative, _outputs(lower, lambda d: d.mean_relative)),
        *_tokens(forced),
        *_scores(scores),
        *_texts([recording for recording in recordings if isinstance(recording, RecordingAccuracy)]),
        *_events([recording for recording in recordings if isinstance(recording, EventAccuracy)]),
        *_overflow(cases, forced),
    ]
    return tuple(gate for gate in gates if gate is not None)


def _tokens(forced: Sequence[ForcedAccuracy]) -> list[Gate | None]:
    flipped = [_Measured(run.name, None if run.blocked or not run.decided else run.flipped) for run in forced]
    decided, positions = sum(run.decided for run in forced), sum(run.positions for run in forced)
    kl = [_Measured(run.name, None if run.blocked else run.kl_max) for run in forced]
    return [
        _total("decisions.tokens", flipped, f"{decided} of {positions} positions were decisive"),
        _worst("decisions.kl", KL_LIMIT, kl),
    ]


def _texts(recordings: Sequence[RecordingAccuracy]) -> list[Gate | None]:
    def differing(equal: Callable[[RecordingAccuracy], bool | None]) -> list[_Measured]:
        return [_Measured(r.name, None if (same := equal(r)) is None else float(not same)) for r in recordings]

    return [
        _total("task.text", differing(lambda r: r.text_equal)),
        _total("task.times", differing(lambda r: r.times_equal)),
        _total("task.tokens", differing(lambda r: r.tokens_equal)),
        _reference(recordings),
    ]


def _reference(recordings: Sequence[RecordingAccuracy]) -> Gate | None:
    rates = [(r.name, r.reference) for r in recordings if r.reference]
    judged = [_Measured(f"{name} ({rate.kind})", rate.value) for name, rate in rates if not rate.not_judged]
    others = [f"{name}: {rate.not_judged}" for name, rate in rates if rate.not_judged]
    note = f"not judged: {'; '.join(others[:_LISTED])}{' ...' if len(others) > _LISTED else ''}" if others else ""
    return _gate("task.reference", LARGEST_RATE, judged, max, note)


def _scores(scores: Sequence[FrameDecisions]) -> list[Gate | None]:
    def measured(value: Callable[[FrameDecisions], float]) -> list[_Measured]:
        return [_Measured(run.name, None if run.blocked else value(run)) for run in scores]

    decisions, near = sum(run.decisions for run in scores), sum(run.near for run in scores)
    note = f"{decisions} decisions; {near} more flipped within the 0.02"
    return [
        _worst("structure.head", HEAD_LIMIT, measured(lambda run: run.head_error)),
        _total("decisions.scores", measured(lambda run: run.flipped), note),
        _total("decisions.frames", measured(lambda run: run.moved)),
    ]


def _events(recordings: Sequence[EventAccuracy]) -> list[Gate | None]:
    lost = [_Measured(r.name, None if r.event_f1 is None else 1 - r.event_f1) for r in recordings]
    tags = [_Measured(r.name, r.tags_error) for r in recordings]
    return [_worst("task.events", EVENT_LIMIT, lost), _worst("task.tags", TAG_LIMIT, tags)]


def _overflow(cases: Sequence[CaseAccuracy], forced: Sequence[ForcedAccuracy]) -> list[Gate | None]:
    def counted(count: Callable[[Difference], int]) -> list[_Measured]:
        runs = [_Measured(run.name, None if run.difference is None else count(run.difference)) for run in forced]
        return [*_outputs(cases, count), *runs]

    return [
        _total("overflow.non_finite", counted(lambda d: d.non_finite)),
        _total("overflow.at_limit", counted(lambda d: d.at_limit)),
    ]


def controls_gate(controls: Sequence[Control]) -> Gate | None:
    """Return the gate of the negative controls, None where none were asked for."""
    missed = [_Measured(c.name, None if c.caught is None else float(not c.caught)) for c in controls]
    return _total("controls.missed", missed)


def _outputs(cases: Iterable[CaseAccuracy], metric: Callable[[Difference], float]) -> list[_Measured]:
    measured = []
    for case in cases:
        if case.blocked:
            measured.append(_Measured(f"{case.graph}/{case.case}", None))
        measured += [_Measured(_place(case, output), metric(output.difference)) for output in case.outputs]
    return measured


def _place(case: CaseAccuracy, output: OutputAccuracy) -> str:
    problem = f" ({output.problem})" if output.problem else ""
    return f"{case.graph}/{case.case} {output.name}{problem}"


def _worst(name: str, limit: float | None, measured: Sequence[_Measured]) -> Gate | None:
    """Return the gate that holds if the largest value keeps the limit."""
    return _gate(name, limit, measured, max, "")


def _total(name: str, measured: Sequence[_Measured], note: str = "") -> Gate | None:
    """Return the gate that holds if all counts are 0."""
    return _gate(name, 0.0, measured, sum, note)


def _gate(
    name: str,
    limit: float | None,
    measured: Sequence[_Measured],
    combine: Callable[[list[float]], float],
    note: str,
) -> Gate | None:
    if limit is None or not measured:
        return None
    known = [(m.value, m.where) for m in measured if m.value is not None]
    missing = [m.where for m in measured if m.value is None]
    value = combine([v for v, _ in known]) if known else None
    worst = max(known, default=(0.0, ""))
    holds = value is not None and value <= limit
    passed = None if missing and (holds or value is None) else holds
    notes = [note] if note else []
    if missing:
        notes.append(f"not measured: {', '.join(missing[:_LISTED])}{' ...' if len(missing) > _LISTED else ''}")
    where = worst[1] if worst[0] > 0 else ""
    return Gate(name=name, value=value, limit=limit, passed=passed, where=where, note="; ".join(notes))


def verdict_of(gates: Sequence[Gate]) -> tuple[Verdict, str]:
    """Return an engine's verdict and its reason in words."""
    failed = [gate for gate in gates if gate.passed is False]
    blocked = [gate for gate in gates if gate.passed is None]
    if failed:
        return "fail", "; ".join(_words(gate) for gate in failed)
    if blocked or not gates:
        reasons = "; ".join(f"{gate.name} ({gate.note})" for gate in blocked)
        return "blocked", reasons or "no case of this artifact was run"
    return "pass", f"all {len(gates)} gates hold"


def _words(gate: Gate) -> str:
    value = "infinite" if gate.value is None or math.isinf(gate.value) else f"{gate.value:.3g}"
    return f"{gate.name} {value} > {gate.limit:.3g}{f' at {gate.where}' if gate.where else ''}"


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict over engines: fail if one failed, pass if one passed and none failed, else blocked."""
    if "fail" in verdicts:
        return "fail"
    return "pass" if "pass" in verdicts else "blocked"
