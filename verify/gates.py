"""The gates of DESIGN.md: what was measured goes in, `Gate` and `Verdict` come out. Nothing here runs a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from runtime.differences import Difference
from runtime.limits import SCORE_BAND, Judged
from runtime.manifest import Tolerances, Variant
from runtime.spoken import LARGEST_RATE
from verify.decisions import most_flips
from verify.questions import QUESTIONS
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
from verify.words import LOSS_LIMIT, answer, loss_bounds

# What ports of these models are asked for: the error against the CPU. No floor moves it.
PORTS_LIMIT = 0.01
HEAD_LIMIT = 1e-4  # the host computes in float32 for every variant
EVENT_LIMIT = 0.01  # 1 - F1
EVENT_STEPS = 1  # beyond what scores that are off explain: how far onsets and offsets may be
# Of an event's score. In fp32 the limits of the graphs' outputs, 1e-4 of logits up to 10 each, explain no more; below
# it is what a score beside its threshold is allowed.
EVENT_SCORE_LIMITS: dict[Variant, float] = {"fp32": 1e-3, "fp16": SCORE_BAND, "bf16": SCORE_BAND}
_LISTED = 3  # places that a note names


@dataclass(frozen=True)
class _Measured:
    """One value and its place; None where it could not be measured. `limit`: its own, where the gate has none."""

    where: str
    value: float | None
    limit: float | None = None


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
    runs = [(f"forced/{run.name}", run.judged, run.blocked) for run in forced]
    gates = [
        *_numbers("structure", tolerances, "fp32", _judged(fp32) + (runs if variant == "fp32" else [])),
        *_numbers("precision", tolerances, variant, _judged(lower) + (runs if variant != "fp32" else [])),
        _worst("ports.relative_l2", PORTS_LIMIT, _real(cases, decisions)) if variant != "bf16" else None,
        *_tokens(forced, variant, tolerances),
        *_scores(scores),
        *_texts([recording for recording in recordings if isinstance(recording, RecordingAccuracy)], variant),
        *_events([recording for recording in recordings if isinstance(recording, EventAccuracy)], variant),
        _repetition(recordings),
        _batch(recordings),
        *_overflow(cases, forced),
    ]
    order = list(QUESTIONS)
    return tuple(sorted((gate for gate in gates if gate is not None), key=lambda gate: order.index(gate.name)))


_Place: TypeAlias = tuple[str, tuple[Judged, ...], str | None]


def _judged(cases: Iterable[CaseAccuracy]) -> list[_Place]:
    places: list[_Place] = []
    for case in cases:
        if case.blocked:
            places.append((f"{case.graph}/{case.case}", (), case.blocked))
        places += [(_place(case, output), output.judged, None) for output in case.outputs]
    return places


def _numbers(group: str, tolerances: Tolerances, precision: Variant, places: Sequence[_Place]) -> list[Gate | None]:
    """Return a gate for each metric that a precision's rules limit: the output that uses most of its limit decides."""
    gates: list[Gate | None] = []
    for metric, rule in tolerances.rules[precision].items():
        found = [
            _Measured(where, judged.value, judged.limit)
            for where, every, _ in places
            for judged in every
            if judged.metric == metric and not (where.startswith("forced/") and metric == "kl")
        ]
        if found or metric == "relative_l2":  # the others do not apply to every family
            found += [_Measured(where, None) for where, _, blocked in places if blocked]
        gates.append(_largest_share(f"{group}.{metric}", rule.constant, found))
    return gates


def _real(cases: Sequence[CaseAccuracy], decisions: Sequence[ForcedAccuracy | FrameDecisions]) -> list[_Measured]:
    """Return the relative L2 errors on what follows from recordings."""
    runs = [_Measured(run.name, _relative_l2(run)) for run in decisions if run.real]
    return [*_outputs([case for case in cases if case.real], lambda d: d.relative_l2), *runs]


def _relative_l2(run: ForcedAccuracy | FrameDecisions) -> float | None:
    if isinstance(run, FrameDecisions):
        return None if run.blocked else run.relative_l2
    return None if run.difference is None else run.difference.relative_l2


def real_relative_l2(
    cases: Sequence[CaseAccuracy], decisions: Sequence[ForcedAccuracy | FrameDecisions]
) -> float | None:
    """Return the largest relative L2 error on what follows from recordings, None where nothing was run."""
    return max((m.value for m in _real(cases, decisions) if m.value is not None), default=None)


def _tokens(forced: Sequence[ForcedAccuracy], variant: Variant, tolerances: Tolerances) -> list[Gate | None]:
    flipped = [_Measured(run.name, None if run.blocked or not run.decided else run.flipped) for run in forced]
    decided, positions = sum(run.decided for run in forced), sum(run.positions for run in forced)
    kl = [
        _Measured(run.name, judged.value, judged.limit)
        for run in forced
        for judged in run.judged
        if judged.metric == "kl"
    ]
    kl += [_Measured(run.name, None) for run in forced if run.blocked]
    return [
        _total("decisions.tokens", flipped, f"{decided} of {positions} positions were decisive"),
        _flips(forced, tolerances) if variant != "fp32" else None,
        _largest_share("decisions.kl", tolerances.rules[variant]["kl"].constant, kl),
    ]


def _flips(forced: Sequence[ForcedAccuracy], tolerances: Tolerances) -> Gate | None:
    measured, notes = [], []
    for head, source in tolerances.decisions.items():
        runs = [run for run in forced if run.head == head]
        if any(run.blocked for run in runs):
            measured.append(_Measured(head, None))
        elif runs:
            positions = sum(run.positions for run in runs)
            flips = positions - sum(run.agreed for run in runs)
            measured.append(_Measured(head, flips, most_flips(source.flips, source.positions, positions)))
            notes.append(f"{head}: the source flips {source.flips} of {source.positions}")
    return _largest_share("decisions.flips", 0.0, measured, "; ".join(notes))


def _texts(recordings: Sequence[RecordingAccuracy], variant: Variant) -> list[Gate | None]:
    def differing(equal: Callable[[RecordingAccuracy], bool | None]) -> list[_Measured]:
        return [
            _Measured(r.name, None if (same := equal(r)) is None else float(not same and not r.near_tie))
            for r in recordings
        ]

    near = [r.name for r in recordings if r.near_tie]
    note = f"other text or times from a near-tie on: {', '.join(near)}" if near else ""
    return [
        _total("task.text", differing(lambda r: r.text_equal), note),
        _total("task.times", differing(lambda r: r.times_equal), note),
        _total("task.tokens", differing(lambda r: r.tokens_equal), note),
        _temperatures(recordings),
        _worse_words(recordings) if variant != "fp32" else None,
        _reference(recordings),
    ]


def _temperatures(recordings: Sequence[RecordingAccuracy]) -> Gate | None:
    heard = [r for r in recordings if r.temperatures_equal is not None]
    return _total("task.temperatures", [_Measured(r.name, float(not r.temperatures_equal)) for r in heard])


def _worse_words(recordings: Sequence[RecordingAccuracy]) -> Gate | None:
    """Return the gate that fails where a loss of more than 1 % of the words is proven."""
    if any(r.blocked for r in recordings):
        return _gate("task.words", LOSS_LIMIT, [_Measured(r.name, None) for r in recordings if r.blocked], max, "")
    counts = [(min(r.worse or 0, r.spoken), r.spoken) for r in recordings if r.spoken]
    if not counts:
        return None
    lower, _ = loss_bounds(counts)
    return _gate("task.words", LOSS_LIMIT, [_Measured("", lower)], max, answer(counts))


def _reference(recordings: Sequence[RecordingAccuracy]) -> Gate | None:
    rates = [(r.name, r.reference) for r in recordings if r.reference]
    judged = [_Measured(f"{name} ({rate.kind})", rate.value) for name, rate in rates if not rate.not_judged]
    others = [f"{name}: {rate.not_judged}" for name, rate in rates if rate.not_judged]
    note = f"not judged: {'; '.join(others[:_LISTED])}{' ...' if len(others) > _LISTED else ''}" if others else ""
    return _gate("task.reference", LARGEST_RATE, judged, max, note)


def _repetition(recordings: Sequence[RecordingAccuracy | EventAccuracy]) -> Gate | None:
    heard = [_Measured(r.name, None if r.repeats is None else float(not r.repeats)) for r in recordings]
    return _total("task.repetition", heard)


def _batch(recordings: Sequence[RecordingAccuracy | EventAccuracy]) -> Gate | None:
    heard = [r for r in recordings if isinstance(r, RecordingAccuracy) and r.in_batch is not None]
    return _total("task.batch", [_Measured(r.name, float(not r.in_batch)) for r in heard])


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


def _events(recordings: Sequence[EventAccuracy], variant: Variant) -> list[Gate | None]:
    def measured(value: Callable[[EventAccuracy], float | None]) -> list[_Measured]:
        return [_Measured(r.name, value(r)) for r in recordings]

    return [
        _worst("task.events", EVENT_LIMIT, measured(lambda r: None if r.event_f1 is None else 1 - r.event_f1)),
        _worst("task.event_times", EVENT_STEPS, measured(lambda r: r.beyond_steps)),
        _worst("task.event_scores", EVENT_SCORE_LIMITS[variant], measured(lambda r: r.scores_error)),
        _worst("task.tags", SCORE_BAND, measured(lambda r: r.tags_error)),
    ]


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


def _largest_share(name: str, constant: float, measured: Sequence[_Measured], note: str = "") -> Gate | None:
    """Return the gate that holds if every value keeps its own limit, with the one that uses most of it."""

    def used(one: _Measured) -> float:
        if one.value is None or one.limit is None:
            return -1.0
        return one.value / one.limit if one.limit else math.inf if one.value else 0.0

    worst = max(measured, key=used, default=None)
    if worst is None:
        return None
    limit = constant if worst.limit is None else worst.limit
    known = [worst] if worst.value is not None else []
    return _gate(name, limit, [*known, *(m for m in measured if m.value is None)], max, note)


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


def verdict_of(gates: Sequence[Gate], variant: Variant = "fp32", real: float | None = None) -> tuple[Verdict, str]:
    """Return an engine's verdict and its reason in words.

    bfloat16 keeps 8 bits: no port in it can be below 1 %, so that no gate asks for it, and the first words say so.
    """
    verdict, reason = _verdict_of(gates)
    if variant != "bf16" or real is None:
        return verdict, reason
    than = "above" if real > PORTS_LIMIT else "within"
    return verdict, f"relative L2 up to {100 * real:.2g} % on real recordings, {than} the 1 % of ports; {reason}"


def _verdict_of(gates: Sequence[Gate]) -> tuple[Verdict, str]:
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
