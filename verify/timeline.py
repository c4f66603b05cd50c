"""What the report shows of sounds: each recording's events as the golden run, the engines and a person have them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from verify.events import Sound, sounds
from verify.inference import InferenceFile
from verify.results import AccuracyFile, EngineAccuracy, EventAccuracy

TIMELINE_WIDTH = 440
_LEFT, _RIGHT = 88, 8
_LABEL, _LANE, _GAP = 17, 12, 6  # heights: a label's line, a lane below it, the space below its lanes
_AXIS = 24
_MOST_TICKS = 8
_MOST_LABELS = 12


@dataclass(frozen=True)
class Heard:
    """One line of a recording's table: what the golden run, an engine or a person hears (`kind`).

    `events` is None where nothing was run; `judged` compares an engine's events with the golden ones.
    """

    who: str
    kind: str
    events: tuple[Sound, ...] | None
    remark: str
    judged: EventAccuracy | None
    annotated_event_f1: float | None
    annotated_segment_f1: float | None


@dataclass(frozen=True)
class Bar:
    """One event in a lane, in the SVG's units."""

    x: float
    width: float
    event: Sound


@dataclass(frozen=True)
class Lane:
    """The events of one label that one of the lines has."""

    who: str
    kind: str
    y: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Timeline:
    """Events over time; `ticks` are (x, label), `labels` are (y, label), `left_out` counts labels without room."""

    width: int
    height: int
    left: int
    ticks: tuple[tuple[float, str], ...]
    labels: tuple[tuple[int, str], ...]
    lanes: tuple[Lane, ...]
    left_out: int


@dataclass(frozen=True)
class RecordingSounds:
    """The sounds of one recording; no timeline where nobody hears an event."""

    name: str
    file: str
    lines: tuple[Heard, ...]
    timeline: Timeline | None


def recording_sounds(accuracy: AccuracyFile, inference: InferenceFile) -> list[RecordingSounds]:
    """Return the sounds of all recordings; none of an artifact that hears text."""
    found = []
    for recording in inference.golden:
        if "events" not in recording.result:
            continue
        engines = [_of_engine(inference, engine, recording.name) for engine in accuracy.engines]
        # The golden run's own numbers stand beside those of every engine that heard the recording.
        judged = next(
            (line.judged for line in engines if line.events is not None and line.judged), EventAccuracy(name="none")
        )
        golden = Heard(
            who="golden",
            kind="golden",
            events=tuple(sounds(recording.result["events"])),
            remark="",
            judged=None,
            annotated_event_f1=judged.golden_annotated_event_f1,
            annotated_segment_f1=judged.golden_annotated_segment_f1,
        )
        lines = [golden, *engines]
        said = (recording.reference or {}).get("events")
        if said is not None:
            lines.append(Heard("person", "person", tuple(sounds(said)), "what is in it", None, None, None))
        found.append(RecordingSounds(recording.name, recording.file, tuple(lines), _timeline(lines)))
    return found


def _of_engine(inference: InferenceFile, engine: EngineAccuracy, name: str) -> Heard:
    results = [r.result for e in inference.engines if e.label == engine.label for r in e.recordings if r.name == name]
    judged = next((r for r in engine.recordings if isinstance(r, EventAccuracy) and r.name == name), None)
    if not results or judged is None:
        reason = (judged and judged.blocked) or "not run"
        return Heard(engine.label, "engine", None, reason, judged, None, None)
    return Heard(
        who=engine.label,
        kind="engine",
        events=tuple(sounds(results[0]["events"])),
        remark=judged.remark,
        judged=judged,
        annotated_event_f1=judged.annotated_event_f1,
        annotated_segment_f1=judged.annotated_segment_f1,
    )


def _timeline(lines: Sequence[Heard]) -> Timeline | None:
    events = [event for line in lines for event in line.events or ()]
    if not events:
        return None
    end = max(event.offset for event in events)
    scale = (TIMELINE_WIDTH - _LEFT - _RIGHT) / end
    every = list(dict.fromkeys(event.label for event in sorted(events, key=lambda event: event.onset)))
    longest = set(sorted(every, key=lambda label: -_seconds(events, label))[:_MOST_LABELS])
    labels: list[tuple[int, str]] = []
    lanes: list[Lane] = []
    y = 0
    for label in (label for label in every if label in longest):
        labels.append((y + _LABEL - 5, label))
        y += _LABEL
        for line in lines:
            if line.events is None:
                continue
            bars = [_bar(event, scale) for event in line.events if event.label == label]
            lanes.append(Lane(line.who, line.kind, y, tuple(bars)))
            y += _LANE
        y += _GAP
    ticks = tuple((round(_LEFT + scale * second, 1), f"{second:g}") for second in _ticks(end))
    return Timeline(TIMELINE_WIDTH, y + _AXIS, _LEFT, ticks, tuple(labels), tuple(lanes), len(every) - len(longest))


def _seconds(events: Sequence[Sound], label: str) -> float:
    return sum(event.offset - event.onset for event in events if event.label == label)


def _bar(event: Sound, scale: float) -> Bar:
    """Return an event's bar, wide enough to be seen."""
    return Bar(round(_LEFT + scale * event.onset, 1), max(1.5, round(scale * (event.offset - event.onset), 1)), event)


def _ticks(end: float) -> list[float]:
    """Return round seconds from 0 to `end`."""
    step = 10.0 ** math.floor(math.log10(end))
    step = next(s for s in (step / 10, step / 5, step / 2, step, 2 * step, 5 * step) if end / s <= _MOST_TICKS)
    return [step * index for index in range(int(end / step + 1e-6) + 1)]
