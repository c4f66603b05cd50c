"""The streaming detector against a plain implementation over whole arrays, and against hand-made events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sed_reference import PlainEvent, plain_events

from runtime.families.cnn8rnn.events import EventDetector, scores_lasting, scores_within
from runtime.families.cnn8rnn.heads import SMALLEST, ClipPooling, score_of_frames, scores_from_logits


def detect(scores: np.ndarray, pieces: list[int], high: list[float], low: list[float], *rest: int) -> list[PlainEvent]:
    detector = EventDetector(np.array(high, np.float32), np.array(low, np.float32), *rest)
    for piece in np.split(scores, pieces):
        detector.push(piece)
    return [(run.place, run.start, run.stop, run.score) for run in detector.finish()]


@st.composite
def cases(draw: st.DrawFn) -> dict:
    n, n_classes = draw(st.integers(1, 60)), draw(st.integers(1, 3))
    # Few values, so that scores equal to a threshold, and to each other, are common.
    values = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 0.8, 1.0])
    scores = draw(st.lists(st.lists(values, min_size=n_classes, max_size=n_classes), min_size=n, max_size=n))
    pairs = [sorted(draw(st.tuples(values, values))) for _ in range(n_classes)]
    return {
        "scores": np.array(scores, np.float32),
        "pieces": sorted(draw(st.lists(st.integers(0, n), max_size=8))),
        "high": [pair[1] for pair in pairs],
        "low": [pair[0] for pair in pairs],
        "rest": (draw(st.sampled_from([1, 3, 5, 9])), draw(st.integers(0, 4)), draw(st.integers(1, 4))),
    }


@settings(max_examples=400)
@given(cases())
def test_equals_the_plain_implementation_wherever_pieces_end(case: dict) -> None:
    """The plain one filters what is above a threshold, the detector the scores: the same for an odd length."""
    expected = plain_events(case["scores"], case["high"], case["low"], case["rest"])
    assert detect(case["scores"], case["pieces"], case["high"], case["low"], *case["rest"]) == expected


def column(*scores: float) -> np.ndarray:
    return np.array(scores, np.float32)[:, None]


@pytest.mark.parametrize(
    ("scores", "options", "expected"),
    [
        # Begins and ends with low, exists by high; both must be exceeded.
        ((0.1, 0.3, 0.8, 0.3, 0.1), (), [(1, 4, 0.8)]),
        ((0.1, 0.3, 0.75, 0.3, 0.1), (), []),
        ((0.25, 0.8, 0.25), (), [(1, 2, 0.8)]),
        # At both ends, and all of it.
        ((0.9,), (), [(0, 1, 0.9)]),
        ((0.9, 0.1, 0.9), (), [(0, 1, 0.9), (2, 3, 0.9)]),
        # A pause of two is merged at 2, not at 1; a run without high between them is no event of its own.
        ((0.9, 0.1, 0.1, 0.8), (1, 1), [(0, 1, 0.9), (3, 4, 0.8)]),
        ((0.9, 0.1, 0.1, 0.8), (1, 2), [(0, 4, 0.9)]),
        ((0.9, 0.1, 0.5, 0.1, 0.8), (1, 2), [(0, 1, 0.9), (4, 5, 0.8)]),
        ((0.9, 0.1, 0.5, 0.1, 0.8), (1, 3), [(0, 5, 0.9)]),
        # Short ones go after merging: two of one score each, with a pause of one, are three.
        ((0.9, 0.1, 0.9, 0.1, 0.1, 0.1, 0.9), (1, 1, 3), [(0, 3, 0.9)]),
        # A median of three takes single peaks away, and fills single holes.
        ((0.1, 0.9, 0.1, 0.1, 0.9, 0.8, 0.1, 0.9, 0.8), (3,), [(4, 9, 0.8)]),
        # The outermost score counts twice: a peak stays there that would go elsewhere.
        ((0.9, 0.1, 0.1, 0.9, 0.1, 0.1, 0.9), (3,), [(0, 1, 0.9), (6, 7, 0.9)]),
    ],
)
def test_by_hand(scores: tuple[float, ...], options: tuple[int, ...], expected: list) -> None:
    for pieces in ([], list(range(len(scores)))):
        found = detect(column(*scores), pieces, [0.75], [0.25], *options)
        assert [event[1:] for event in found] == [(a, b, pytest.approx(score)) for a, b, score in expected]


def test_classes_have_their_own_thresholds() -> None:
    scores = np.repeat(column(0.1, 0.6, 0.3, 0.1), 3, axis=1)
    found = detect(scores, [2], [0.75, 0.5, 0.2], [0.25, 0.4, 0.05])
    assert [event[:3] for event in found] == [(2, 0, 4), (1, 1, 2)]


def test_what_is_held_does_not_grow() -> None:
    """A week of one endless event in the first class, and noise below the threshold in the other."""
    detector = EventDetector(np.full(2, 0.75, np.float32), np.full(2, 0.25, np.float32), 25)
    block = np.tile(np.array([[0.9, 0.2]], np.float32), (100_000, 1))
    for _ in range(150):
        detector.push(block)
        assert len(detector._rows) == 24
        assert detector._rows.base is None or detector._rows.base.shape[0] <= len(block) + 24
    assert [(run.start, run.stop) for run in detector.finish()] == [(0, 15_000_000)]


def test_seconds_are_whole_scores() -> None:
    # As floats, 1.16 / 0.04 is below 29 and 0.28 / 0.04 above 7.
    assert [scores_within(s, 0.04) for s in (0.0, 0.039, 0.04, 0.28, 0.3, 1.16)] == [0, 0, 1, 7, 7, 29]
    assert [scores_lasting(s, 0.04) for s in (0.0, 0.01, 0.04, 0.28, 0.3, 1.16)] == [0, 1, 1, 7, 8, 29]


# --- heads ---


def test_scores_are_the_clamped_sigmoid() -> None:
    logits = np.array([[-1e4, -100.0, -20.0, -16.0, -1.0, 0.0, 1.0, 20.0, 1e4]], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        scores = scores_from_logits(logits)
    with np.errstate(over="ignore"):
        expected = np.maximum(1 / (1 + np.exp(-logits.astype(np.float64))), SMALLEST)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=2e-7)


def test_pooling_by_hand_and_in_pieces() -> None:
    scores = np.array([[0.5, 1e-7], [1.0, 1e-7], [0.1, 1e-7]], np.float32)
    for pieces in ([], [1], [1, 2]):
        pooling = ClipPooling(2)
        for piece in np.split(scores, pieces):
            pooling.push(piece)
        np.testing.assert_allclose(pooling.result(), [(0.25 + 1 + 0.01) / 1.6, 1e-7], rtol=1e-6)


def test_half_precision_pooling_would_be_wrong() -> None:
    """Why the heads are float32: squares of small scores vanish in float16."""
    scores = np.full((100, 1), 2e-4, np.float32)
    pooling = ClipPooling(1)
    pooling.push(scores)
    half = scores.astype(np.float16)
    assert pooling.result()[0] == pytest.approx(2e-4, rel=1e-5)
    assert abs(float((half * half).sum() / half.sum()) - 2e-4) > 0.05 * 2e-4


@pytest.mark.parametrize("n_frames", [1, 3, 4, 5, 7, 8, 301, 1000])
def test_frames_repeat_their_score_and_the_last_one(n_frames: int) -> None:
    n_scores = max(1, n_frames // 4)
    expected = [place for place in range(n_scores) for _ in range(4)][:n_frames]
    expected += [n_scores - 1] * (n_frames - len(expected))
    assert score_of_frames(0, n_frames, 4, n_scores).tolist() == expected
    assert score_of_frames(n_frames - 1, n_frames, 4, n_scores).tolist() == expected[-1:]
