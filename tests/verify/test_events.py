"""Event metrics against sed_eval's numbers, brute force and hand-made lists; score decisions by hand."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.manifest import Recording
from runtime.results import AudioInfo, Event, SoundEvents, Tag
from verify.events import (
    SCORE_BAND,
    Sound,
    beyond,
    event_f1,
    judge_events,
    judge_frames,
    paired,
    segment_f1,
    sounds,
    tags_error,
    true_clip,
    true_scores,
)
from verify.results import FrameDecisions

STEP_S = 0.04
REFERENCE = json.loads(Path(__file__).with_name("sed_eval_reference.json").read_text())


def event(onset: float, offset: float, label: str = "Siren") -> Sound:
    return Sound(onset, offset, label)


def test_event_and_segment_f1_are_those_of_sed_eval() -> None:
    assert len(REFERENCE["lists"]) == 60
    for case in REFERENCE["lists"]:
        reference, found = sounds(case["reference"]), sounds(case["found"])
        assert event_f1(reference, found) == pytest.approx(case["event_f1"], abs=1e-9)
        assert segment_f1(reference, found) == pytest.approx(case["segment_f1"], abs=1e-9)


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        (event(1.0, 3.0), True),
        (event(1.2, 3.0), True),
        (event(0.8, 3.0), True),
        (event(1.201, 3.0), False),
        (event(0.799, 3.0), False),
        (event(1.0, 3.4), True),  # 20 % of 2 s
        (event(1.0, 3.401), False),
        (event(1.0, 2.599), False),
        (event(1.0, 3.0, "Dog"), False),
    ],
)
def test_collars(found: Sound, counts: bool) -> None:  # noqa: FBT001
    assert event_f1([event(1.0, 3.0)], [found]) == float(counts)


def test_offsets_of_short_events_have_200_ms() -> None:
    assert event_f1([event(1.0, 1.1)], [event(1.0, 1.3)]) == 1
    assert event_f1([event(1.0, 1.1)], [event(1.0, 1.31)]) == 0


def test_rounding_does_not_decide_on_the_collar() -> None:
    """Five steps of 40 ms are 200 ms, wherever they are; in binary fractions they may be more."""
    steps = [(0.04 * n, 0.04 * (n + 5)) for n in range(500)]
    assert any(later - onset > 0.2 for onset, later in steps)
    assert all(event_f1([event(onset, onset + 1)], [event(later, onset + 1)]) == 1 for onset, later in steps)


def test_nearest_first_would_lose_a_pair() -> None:
    """The first event takes the nearer of its two candidates, which is the only one of the second."""
    reference = [event(1.0, 2.0), event(1.2, 2.2)]
    found = [event(1.05, 2.05), event(0.9, 1.9)]
    assert paired(reference, found) == {0: 1, 1: 0}


def test_nothing_heard_and_nothing_there() -> None:
    assert event_f1([], []) == segment_f1([], []) == 1
    assert event_f1([event(0, 1)], []) == event_f1([], [event(0, 1)]) == 0
    assert segment_f1([event(0, 1)], []) == 0


def test_segments_by_hand() -> None:
    # Reference in seconds 0, 1, 2; found in 1, 2, 3 and, of another class, in 0.
    reference, found = [event(0.5, 2.1)], [event(1.0, 3.5), event(0.2, 0.3, "Dog")]
    assert segment_f1(reference, found) == pytest.approx(2 * 2 / (3 + 4))


_times = st.integers(0, 12).map(lambda step: step * 0.11)
_events = st.lists(
    st.builds(
        lambda onset, length, label: Sound(onset, onset + 0.05 + length, label), _times, _times, st.sampled_from("ab")
    ),
    max_size=4,
)


@given(_events, _events)
def test_pairing_is_a_largest_one(reference: list[Sound], found: list[Sound]) -> None:
    pairs = paired(reference, found)
    assert len(set(pairs.values())) == len(pairs)
    fits = {(i, j) for i, a in enumerate(reference) for j, b in enumerate(found) if event_f1([a], [b]) == 1}
    assert all((i, j) in fits for j, i in pairs.items())
    every = product([None, *range(len(found))], repeat=len(reference))
    taken = [[(i, j) for i, j in enumerate(choice) if j is not None] for choice in every]
    largest = max(len(pick) for pick in taken if set(pick) <= fits and len({j for _, j in pick}) == len(pick))
    assert len(pairs) == largest


@given(_events)
def test_the_same_events_score_one(events: list[Sound]) -> None:
    assert event_f1(events, events) == 1
    assert segment_f1(events, events[::-1]) == 1


def test_a_long_chain_of_close_events() -> None:
    """Every event has two candidates; the last one, which all shift for, is found without recursion."""
    reference = [event(0.15 * i, 0.15 * i + 0.1) for i in range(1200)]
    found = [event(0.15 * i - 0.15, 0.15 * i - 0.05) for i in range(1200)]
    assert len(paired(reference, found)) == 1200


def test_tags_by_hand() -> None:
    golden = {"Dog": 0.9, "Siren": 0.5, "Speech": 0.2}
    assert tags_error(golden, golden) == 0
    assert tags_error(golden, {**golden, "Siren": 0.53}) == pytest.approx(0.03)
    # The third place went to another class: Speech has at most 0.19 there, Noise at most 0.2 here.
    assert tags_error(golden, {"Dog": 0.9, "Siren": 0.5, "Noise": 0.19}) == pytest.approx(0.01)
    assert tags_error(golden, {"Dog": 0.9, "Siren": 0.5, "Noise": 0.7}) == pytest.approx(0.5)
    assert tags_error(golden, {"Dog": 0.9}) == math.inf
    assert tags_error({}, {}) == 0


def result(events: list[Sound], tags: dict[str, float]) -> SoundEvents:
    return SoundEvents(
        model="m",
        variant="fp32",
        device="cpu",
        engine="onnxruntime",
        audio=AudioInfo("a.wav", 6.0, 32000),
        tags=tuple(Tag(label, score) for label, score in tags.items()),
        events=tuple(Event(e.onset, e.offset, e.label, 0.9) for e in events),
        resolution_s=0.04,
    )


def recording(events: list[Sound], said: list[Sound] | None) -> Recording:
    def plain(listed: list[Sound]) -> list[dict[str, Any]]:
        return [{"onset": e.onset, "offset": e.offset, "label": e.label} for e in listed]

    return Recording(
        name="sed_1",
        file="audio/sed_1.wav",
        options={},
        reference=None if said is None else {"events": plain(said)},
        result={
            "tags": [{"label": "Siren", "score": 0.9}],
            "events": [{**e, "score": 0.9} for e in plain(events)],
        },
        certain=tuple(plain(events)),
        possible=tuple(plain(events)),
    )


def test_recording_against_golden_and_person() -> None:
    golden = [event(1.0, 2.0), event(3.0, 4.0)]
    said = [event(1.15, 2.0), event(3.0, 4.0), event(4.5, 5.5, "Dog")]
    found = [event(0.92, 2.04), event(3.0, 4.0)]
    judged = judge_events(recording(golden, said), result(found, {"Siren": 0.89}), STEP_S)
    assert judged.event_f1 == 1
    assert judged.moved_s == pytest.approx(0.08)
    assert judged.tags_error == pytest.approx(0.01)
    assert judged.beyond_steps == pytest.approx(2)
    assert judged.scores_error == 0
    assert judged.remark == "events as golden, moved by at most 80 ms"
    assert judged.golden_annotated_event_f1 == pytest.approx(4 / 5)
    assert judged.annotated_event_f1 == pytest.approx(2 / 5), "the onset is 230 ms early"
    # Siren in seconds 1 and 3, in 0 and 2 by the engine only; Dog in 4 and 5 by the person only.
    assert judged.golden_annotated_segment_f1 == pytest.approx(2 * 2 / (2 + 4))
    assert judged.annotated_segment_f1 == pytest.approx(2 * 2 / (4 + 4))


def test_recording_without_annotations() -> None:
    judged = judge_events(recording([event(1.0, 2.0)], None), result([event(1.0, 2.0)], {"Siren": 0.9}), STEP_S)
    assert judged.as_golden
    assert judged.remark == "events as golden"
    assert judged.annotated_event_f1 is judged.golden_annotated_segment_f1 is None


def test_one_event_more_is_not_as_golden() -> None:
    judged = judge_events(recording([event(1, 2)], None), result([event(1, 2), event(3, 4)], {"Siren": 0.9}), STEP_S)
    assert not judged.as_golden
    assert judged.event_f1 == pytest.approx(2 / 3)
    assert judged.remark == "event-F1 0.667 against the golden run"


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        ([event(1.0, 2.0), event(3.0, 4.0)], 0),
        ([event(0.9, 2.2), event(3.0, 4.0)], 0),  # as far as the scores may be off
        ([event(0.9, 2.2), event(3.0, 4.0), event(5.0, 5.2, "Dog")], 0),  # of which nobody knows whether it is one
        ([event(0.86, 2.0), event(3.0, 4.0)], 0.04),
        ([event(1.16, 2.16), event(3.16, 4.16)], 0.16),
        ([event(2.0, 1.0), event(4.0, 3.0)], 1),
        ([event(1.0, 4.0), event(3.0, 4.0)], 1.8),
        ([event(1.0, 2.0)], 2),
        ([event(1.0, 2.0), event(3.0, 4.0), event(1.0, 2.0, "Dog")], 3.8),
        ([event(1.0, 2.0), event(3.0, 4.0, "Dog")], 2),
        ([event(1.0, 2.0), event(3.0, 4.0), event(1.0, 2.0, "Cat")], math.inf),
    ],
)
def test_what_is_beyond_certain_and_possible_events(found: list[Sound], seconds: float) -> None:
    certain = [event(1.0, 2.0), event(3.0, 4.0)]
    possible = [event(0.9, 2.2), event(3.0, 4.0), event(4.8, 5.2, "Dog")]
    assert beyond(certain, found, possible) == pytest.approx(seconds)


def logits(scores: Any) -> np.ndarray:
    p = np.asarray(scores, np.float64)
    return np.log(p / (1 - p)).astype(np.float32)


def frames(
    golden: Any, found: Any, *, heads: Any = None, thresholds: tuple[float, ...] = (0.75, 0.25)
) -> FrameDecisions:
    """Judge scores [n, C]."""
    made = logits(found)
    true = true_scores(made)
    exact = true.astype(np.float32), true_clip(true).astype(np.float32)
    limits = [np.full(made.shape[1], threshold, np.float32) for threshold in thresholds]
    return judge_frames("case", logits(golden), made, exact if heads is None else heads, limits)


def test_flips_count_only_beyond_the_band() -> None:
    golden = [[0.76, 0.80, 0.10, 0.24]]
    found = [[0.74, 0.70, 0.10, 0.26]]
    judged = frames(golden, found)
    assert (judged.decisions, judged.flipped, judged.near, judged.band) == (8, 1, 2, SCORE_BAND)
    assert judged.max_score_error == pytest.approx(0.1, abs=1e-6)


def test_a_large_error_that_decides_nothing_is_no_flip() -> None:
    judged = frames([[0.30]], [[0.70]])
    assert (judged.flipped, judged.near) == (0, 0)


def test_each_class_has_its_thresholds() -> None:
    golden, found = logits([[0.6, 0.6]]), logits([[0.4, 0.4]])
    scores = true_scores(found).astype(np.float32), true_scores(found)[0].astype(np.float32)
    judged = judge_frames("case", golden, found, scores, [np.array([0.5, 0.9], np.float32)])
    assert (judged.decisions, judged.flipped) == (2, 1)


def test_peaks_that_move() -> None:
    golden = [[0.5, 0.90, 0.30], [0.6, 0.91, 0.10], [0.4, 0.20, 0.30]]
    found = [[0.5, 0.92, 0.10], [0.5, 0.91, 0.30], [0.6, 0.20, 0.10]]
    # To a frame where the golden score is 0.2, 0.01 and 0.2 lower; the second was as good a choice.
    judged = frames(golden, found)
    assert (judged.classes, judged.moved) == (3, 2)


def test_clip_score_by_hand() -> None:
    # sum p^2 / sum p: golden (0.25 + 0.01) / 0.6, found (0.36 + 0.01) / 0.7.
    judged = frames([[0.5], [0.1]], [[0.6], [0.1]])
    assert judged.clip_mean_relative == pytest.approx((0.37 / 0.7) / (0.26 / 0.6) - 1, rel=1e-5)
    assert judged.head_error < 1e-6


def test_heads_are_compared_with_float64_of_the_same_logits() -> None:
    found = [[0.5, 0.001], [0.1, 0.001]]
    true = true_scores(logits(found)).astype(np.float32)
    clip = true_clip(true_scores(logits(found))).astype(np.float32)
    assert frames(found, found, heads=(true, clip * np.float32(1.001))).head_error == pytest.approx(1e-3, rel=1e-3)
    assert frames(found, found, heads=(true * np.float32(0.99), clip)).head_error == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.parametrize("broken", ["NaN", "infinite", "shape"])
def test_what_cannot_be_compared_has_all_decisions_wrong(broken: str) -> None:
    golden = np.zeros((3, 2), np.float32)
    found = np.zeros((2 if broken == "shape" else 3, 2), np.float32)
    if broken != "shape":
        found[1, 0] = math.nan if broken == "NaN" else math.inf
    judged = judge_frames("case", golden, found, (found, found[0]), [np.full(2, 0.5, np.float32)] * 2)
    assert judged.flipped == judged.decisions == 12
    assert judged.moved == judged.classes == 2
    assert judged.max_score_error == judged.head_error == math.inf
    assert FrameDecisions.model_validate_json(judged.model_dump_json()) == judged
