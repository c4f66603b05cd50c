"""Compares sound events with golden and annotated ones, and scores with golden ones. Nothing here runs a graph.

Event-F1 and segment-F1 are those of Mesaros, Heittola and Virtanen, "Metrics for polyphonic sound event detection"
(2016), micro-averaged over classes; tests/verify/sed_eval_reference.json holds what sed_eval 0.2.1 says of random
event lists.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.differences import Doubles, compare
from runtime.engines.base import Floats
from runtime.limits import SCORE_BAND
from runtime.manifest import Recording
from runtime.results import SoundEvents
from verify.results import EventAccuracy, FrameDecisions

ONSET_COLLAR_S = 0.2
OFFSET_COLLAR_S = 0.2
OFFSET_COLLAR_SHARE = 0.2  # of the reference event's length, where that is more
SEGMENT_S = 1.0
# Scores come every 40 ms, so an onset may well lie on the collar, five steps away; rounding must not decide then.
_ROUNDING_S = 1e-6


@dataclass(frozen=True)
class Sound:
    """A sound from `onset` to `offset`, seconds from the start of the recording."""

    onset: float
    offset: float
    label: str


def sounds(events: Sequence[Mapping[str, Any]]) -> list[Sound]:
    """Return the sounds in the JSON of a result or of a reference."""
    return [Sound(event["onset"], event["offset"], event["label"]) for event in events]


def event_f1(reference: Sequence[Sound], found: Sequence[Sound]) -> float:
    """Return 2 * pairs / (events on both sides), 1 where neither side has one; `paired` says what a pair is."""
    return _f1(event_counts(reference, found))


def segment_f1(reference: Sequence[Sound], found: Sequence[Sound], segment_s: float = SEGMENT_S) -> float:
    """Return the F1 of (segment, label), where a segment has every label of which an event reaches into it."""
    return _f1(segment_counts(reference, found, segment_s))


def event_counts(reference: Sequence[Sound], found: Sequence[Sound]) -> tuple[int, int]:
    """Return what event-F1 divides, which is summed over recordings."""
    return 2 * len(paired(reference, found)), len(reference) + len(found)


def segment_counts(reference: Sequence[Sound], found: Sequence[Sound], segment_s: float = SEGMENT_S) -> tuple[int, int]:
    """Return what segment-F1 divides, which is summed over recordings."""
    expected, heard = _segments(reference, segment_s), _segments(found, segment_s)
    return 2 * len(expected & heard), len(expected) + len(heard)


def _f1(counts: tuple[int, int]) -> float:
    agreed, both = counts
    return agreed / both if both else 1.0


def _segments(events: Sequence[Sound], segment_s: float) -> set[tuple[int, str]]:
    return {
        (segment, event.label)
        for event in events
        for segment in range(math.floor(event.onset / segment_s), math.ceil(event.offset / segment_s))
    }


def paired(reference: Sequence[Sound], found: Sequence[Sound]) -> dict[int, int]:
    """Return a largest one-to-one pairing: indices into `reference` by index into `found`.

    Two events may be paired if they have the same label, their onsets are within 200 ms, and their offsets within
    200 ms or 20 % of the reference event's length, whichever is more.
    """
    pairs: dict[int, int] = {}
    choices = [_choices(event, found) for event in reference]
    for index in range(len(reference)):
        _add_pair(index, choices, pairs)
    return pairs


def _choices(event: Sound, found: Sequence[Sound]) -> list[int]:
    """Return the indices of the found events that may be paired with a reference event, nearest first."""
    offset_collar = max(OFFSET_COLLAR_S, OFFSET_COLLAR_SHARE * (event.offset - event.onset))
    near = [
        (_distance(event, other), index)
        for index, other in enumerate(found)
        if other.label == event.label
        and abs(other.onset - event.onset) <= ONSET_COLLAR_S + _ROUNDING_S
        and abs(other.offset - event.offset) <= offset_collar + _ROUNDING_S
    ]
    return [index for _, index in sorted(near)]


def _distance(event: Sound, other: Sound) -> float:
    return max(abs(other.onset - event.onset), abs(other.offset - event.offset))


def _add_pair(start: int, choices: Sequence[Sequence[int]], pairs: dict[int, int]) -> None:
    """Pair reference event `start` too, if pairs can be changed so that all others keep one (Berge's lemma)."""
    reached: dict[int, int] = {}  # found event: the reference event that it was reached from
    queue = deque([start])
    while queue:
        reference = queue.popleft()
        for found in choices[reference]:
            if found in reached:
                continue
            reached[found] = reference
            if found not in pairs:
                _shift(found, reached, pairs)
                return
            queue.append(pairs[found])


def _shift(free: int, reached: Mapping[int, int], pairs: dict[int, int]) -> None:
    """Give `free` to the reference event that reached it, what that one had to the one before it, and so on."""
    had = {reference: found for found, reference in pairs.items()}
    found: int | None = free
    while found is not None:
        reference = reached[found]
        pairs[found] = reference
        found = had.get(reference)


def judge_events(recording: Recording, result: SoundEvents, step_s: float) -> EventAccuracy:
    """Compare a recording's events and tags with the golden run's, and both runs' events with a person's.

    Parameters
    ----------
    recording : Recording
        Of the manifest.
    result : SoundEvents
        What was heard.
    step_s : float
        Seconds from one score to the next.

    """
    said = (recording.reference or {}).get("events")
    events, golden_events = result.to_json()["events"], recording.result["events"]
    found, golden = sounds(events), sounds(golden_events)
    pairs = paired(golden, found)
    judged = EventAccuracy(
        name=recording.name,
        event_f1=event_f1(golden, found),
        moved_s=max((_distance(golden[i], found[j]) for j, i in pairs.items()), default=0.0),
        beyond_steps=beyond(sounds(recording.certain or ()), found, sounds(recording.possible or ())) / step_s,
        scores_error=max((abs(golden_events[i]["score"] - events[j]["score"]) for j, i in pairs.items()), default=0.0),
        tags_error=tags_error(
            {tag["label"]: tag["score"] for tag in recording.result["tags"]},
            {tag.label: tag.score for tag in result.tags},
        ),
    )
    if said is None:
        return judged
    annotated = sounds(said)
    return judged.model_copy(
        update={
            "annotated_event_f1": event_f1(annotated, found),
            "annotated_segment_f1": segment_f1(annotated, found),
            "golden_annotated_event_f1": event_f1(annotated, golden),
            "golden_annotated_segment_f1": segment_f1(annotated, golden),
        }
    )


def beyond(certain: Sequence[Sound], found: Sequence[Sound], possible: Sequence[Sound]) -> float:
    """Return the seconds by which events are beyond what rounding explains, infinite where a label has none.

    Each found event lies within a possible one of its label, and each certain one within a found one.
    """
    return max(_outside(found, possible), _outside(certain, found))


def _outside(inner: Sequence[Sound], outer: Sequence[Sound]) -> float:
    """Return the most seconds by which an event reaches beyond the one of its label that holds most of it."""
    return max((min((_excess(one, other) for other in outer), default=math.inf) for one in inner), default=0.0)


def _excess(one: Sound, other: Sound) -> float:
    if one.label != other.label:
        return math.inf
    return round(max(other.onset - one.onset, one.offset - other.offset, 0.0), 6)  # binary fractions leave noise


def tags_error(golden: Mapping[str, float], found: Mapping[str, float]) -> float:
    """Return the largest difference of a tag's score, infinite where one side has more tags.

    A list of tags ends with the k-th highest score. A label that is on one of the two lists only has a score on the
    other side that is at most the lowest listed there: from that it differs at least.
    """
    if len(golden) != len(found):
        return math.inf
    lowest = min(golden.values(), default=0.0), min(found.values(), default=0.0)
    errors = [0.0]
    for label in golden.keys() | found.keys():
        if label in golden and label in found:
            errors.append(abs(golden[label] - found[label]))
        else:
            errors.append(golden[label] - lowest[1] if label in golden else found[label] - lowest[0])
    return max(errors)


def true_scores(logits: Floats) -> Doubles:
    """Return the scores f64 [n, C] of logits f32 [n, C]: their sigmoid, not below the original's clamp at 1e-7."""
    scores: Doubles = np.maximum(1 / (1 + np.exp(-np.asarray(logits, np.float64))), 1e-7)
    return scores


def true_clip(scores: Doubles) -> Doubles:
    """Return the scores f64 [C] of a whole recording: sum p^2 / sum p over its scores f64 [n, C]."""
    clip: Doubles = (scores**2).sum(axis=0) / scores.sum(axis=0)
    return clip


def judge_frames(
    name: str,
    golden: Floats,
    logits: Floats,
    heads: tuple[Floats, Floats],
    thresholds: Sequence[Floats],
    *,
    real: bool = False,
) -> FrameDecisions:
    """Compare an engine's decisions with the golden ones.

    Parameters
    ----------
    name : str
        The case.
    golden, logits : Floats
        f32 [n, C]; of the engine's, whatever they are, only those that have a golden counterpart.
    heads : tuple of Floats
        What the runtime's heads made of `logits`: scores f32 [n, C], and their pooling f32 [C].
    thresholds : sequence of Floats
        f32 [C] each: what a score is compared with.
    real : bool
        Whether the case is of a recording.

    """
    decisions = golden.size * len(thresholds)
    classes = golden.shape[1]
    if logits.shape != golden.shape or not np.isfinite(logits).all():
        return FrameDecisions(
            name=name,
            real=real,
            band=SCORE_BAND,
            decisions=decisions,
            flipped=decisions,
            classes=classes,
            moved=classes,
            max_score_error=math.inf,
            clip_mean_relative=math.inf,
            head_error=math.inf,
            relative_l2=math.inf,
        )
    expected, true = true_scores(golden), true_scores(logits)
    scores, clip = heads
    flips = [((scores > t) != (expected > t), np.abs(expected - t) > SCORE_BAND) for t in thresholds]
    peak, found_peak = expected.argmax(axis=0), scores.argmax(axis=0)
    every = np.arange(classes)
    lead = expected[peak, every] - expected[found_peak, every]
    expected_clip = true_clip(expected)
    return FrameDecisions(
        name=name,
        real=real,
        band=SCORE_BAND,
        decisions=decisions,
        flipped=sum(int((flip & clear).sum()) for flip, clear in flips),
        near=sum(int((flip & ~clear).sum()) for flip, clear in flips),
        classes=classes,
        moved=int((lead > SCORE_BAND).sum()),
        max_score_error=float(np.abs(scores - expected).max()),
        clip_mean_relative=float((np.abs(clip - expected_clip) / expected_clip).mean()),
        head_error=max(_relative(scores, true), _relative(clip, true_clip(true))),
        relative_l2=compare(logits, golden, "float32", logits=False).relative_l2,
    )


def _relative(found: Floats, true: Doubles) -> float:
    return float((np.abs(found - true) / true).max())
