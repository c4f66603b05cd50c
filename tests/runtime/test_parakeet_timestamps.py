"""Times of tokens, words and segments against NeMo's; its rules on transcripts by hand; confidence by the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parakeet_nets import ITEMS, REFERENCE, log_softmax, reference_emissions, reference_triples
from parakeet_tokens import emissions, pocket_tokenizer

from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.parakeet_tdt.search import Emission
from runtime.families.parakeet_tdt.timestamps import timed_tokens, token_spans
from runtime.fastconformer.confidence import token_confidence
from runtime.fastconformer.timestamps import WordSpan, segments_of, words_of
from runtime.fastconformer.transcript import timed_segments
from runtime.results import Segment

TOKENIZER = pocket_tokenizer()
FRAME_S = 0.08


def words(found: list[Emission]) -> list[WordSpan]:
    return words_of([emission.token for emission in found], token_spans(found, TOKENIZER), TOKENIZER)


def spelled(found: list[Emission]) -> list[tuple[str, int, int]]:
    return [(word.text, word.span.start, word.span.end) for word in words(found)]


def segments(found: list[Emission], start_s: float = 0.0, **options: object) -> tuple[Segment, ...]:
    chosen = ParakeetOptions.parse(options)
    tokens = timed_tokens(found, TOKENIZER, chosen.confidence)
    return timed_segments(
        tokens, TOKENIZER, chosen, FRAME_S, lambda start, end: (round(start_s + start, 6), round(start_s + end, 6))
    )


# --- NeMo's references ---


@pytest.mark.parametrize("name", list(ITEMS))
def test_tokens_of_nemo(name: str) -> None:
    spans = token_spans(reference_emissions(name), TOKENIZER)
    expected = [(row["start_offset"], row["end_offset"]) for row in ITEMS[name]["char_offsets"]]
    assert [(span.start, span.end) for span in spans] == expected


@pytest.mark.parametrize("name", list(ITEMS))
def test_words_of_nemo(name: str) -> None:
    item = ITEMS[name]
    found = [word for segment in segments(reference_emissions(name)) for word in segment.words]
    for expected in (item["words"], item["transcribe"]["words"]):
        assert [word.text for word in found] == [word["word"] for word in expected]
        np.testing.assert_allclose([word.start for word in found], [word["start"] for word in expected], atol=1e-9)
        np.testing.assert_allclose([word.end for word in found], [word["end"] for word in expected], atol=1e-9)


@pytest.mark.parametrize("name", list(ITEMS))
def test_segments_are_sentences(name: str) -> None:
    found = segments(reference_emissions(name))
    text = ITEMS[name]["text"]
    assert " ".join(segment.text for segment in found) == text
    assert [segment.text[-1] for segment in found] == [char for char in text if char in ".?!"]
    ids = [token.id for segment in found for token in segment.token_times]
    assert ids == [token for token, _, _ in reference_triples(name)]
    for segment in found:
        assert segment.text == " ".join(word.text for word in segment.words)
        assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)


# --- the rules by hand ---


def test_a_mark_stands_at_the_end_of_the_word() -> None:
    """Emitted in the pause behind it, and a duration of its own does not count."""
    found = emissions((" Go", 2, 3), (".", 20, 4), (" the", 30, 1))
    assert spelled(found) == [("Go.", 2, 5), ("the", 30, 31)]
    spans = token_spans(found, TOKENIZER)
    assert (spans[1].start, spans[1].end) == (5, 5)


def test_marks_follow_each_other() -> None:
    assert spelled(emissions((" Go", 2, 3), (".", 9, 1), ("?", 12, 2), (" on", 14, 1))) == [
        ("Go.?", 2, 5),
        ("on", 14, 15),
    ]


def test_a_mark_first() -> None:
    """There is no token before it: it keeps its time and begins the first word."""
    assert spelled(emissions((",", 1, 2), (" Go", 4, 1))) == [(",", 1, 3), ("Go", 4, 5)]


def test_a_space_before_a_mark_is_dropped() -> None:
    found = emissions((" Go", 2, 3), (" ", 6, 1), (".", 9, 1), (" on", 14, 1))
    assert spelled(found) == [("Go", 2, 5), (".", 6, 7), ("on", 14, 15)]
    assert TOKENIZER.decode([emission.token for emission in found]) == "Go. on"


def test_a_space_alone_begins_a_word() -> None:
    assert spelled(emissions((" ", 0, 1), ("H", 1, 0), ("ello", 1, 4))) == [("Hello", 0, 5)]
    # ... but is none.
    assert spelled(emissions((" Go", 0, 1), (" ", 3, 1), (" on", 9, 2))) == [("Go", 0, 1), ("on", 9, 11)]


def test_no_space_at_the_start() -> None:
    assert spelled(emissions(("ell", 3, 1), ("o", 4, 2), (" on", 9, 2))) == [("ello", 3, 6), ("on", 9, 11)]


def test_nothing() -> None:
    assert spelled([]) == []
    assert segments([]) == ()
    assert segments(emissions((" ", 3, 1))) == ()


def test_a_gap_begins_a_segment() -> None:
    found = emissions((" Go", 0, 2), (" on", 4, 2), (" red", 12, 2), (".", 15, 1), (" is", 16, 1))

    def texts(**options: object) -> list[str]:
        return [segment.text for segment in segments(found, **options)]

    assert texts() == ["Go on red.", "is"]
    # From frame 2 to 4 and from 6 to 12: 0.16 s and 0.48 s.
    assert texts(segment_gap_s=0.48) == ["Go on", "red.", "is"]
    assert texts(segment_gap_s=0.49) == ["Go on red.", "is"]
    assert texts(segment_gap_s=0.16) == ["Go", "on", "red.", "is"]
    assert [len(part) for part in segments_of(words(found), 6)] == [2, 1, 1]


def test_times_count_from_the_clips_start() -> None:
    usual, later = (segments(reference_emissions("t2"), start_s) for start_s in (0.0, 12.3))
    assert [round(segment.start + 12.3, 6) for segment in usual] == [segment.start for segment in later]
    texts = [token.text for token in usual[0].token_times]
    assert texts == [
        " Turn",
        " off",
        " the",
        " ",
        "r",
        "a",
        "d",
        "i",
        "o",
        ".",
    ]


ROWS = st.lists(st.tuples(st.integers(1, 191), st.integers(0, 5), st.integers(0, 4)), max_size=25)


@settings(max_examples=150)
@given(rows=ROWS)
def test_any_tokens(rows: list[tuple[int, int, int]]) -> None:
    """Times never fall, words and segments follow each other, and no token is lost or there twice."""
    found, frame = [], 0
    for token, pause, duration in rows:
        frame += pause
        found.append(Emission(token, frame, duration, -0.5, 0.3))
        frame += duration
    parts = segments(found)
    tokens = [token for part in parts for token in part.token_times]
    if parts:
        assert [token.id for token in tokens] == [token for token, _, _ in rows]
    times = [time for token in tokens for time in (token.start, token.end)]
    assert times == sorted(times)
    marks = [time for part in parts for word in part.words for time in (word.start, word.end)]
    assert marks == sorted(marks)
    written = "".join(word.text for part in parts for word in part.words)
    assert written == TOKENIZER.decode([token for token, _, _ in rows]).replace(" ", "")


# --- confidence ---


@pytest.mark.parametrize("name", list(ITEMS))
def test_confidence_of_nemos_rows(name: str) -> None:
    """From the whole distribution, by the formulas as NeMo writes them (alpha 1, linear)."""
    stored = np.load(REFERENCE / f"{name}.npz")
    rows = stored["joint"][stored["step_label"] != 192, :193].astype(np.float64)
    for row in rows:
        x = log_softmax(row)
        emission = Emission(int(row.argmax()), 0, 0, float(x.max()), -float((np.exp(x) * x).sum()))
        highest = (np.exp(x.max()) * 193 - 1) / 192
        gibbs = 1 + (np.exp(x) * x).sum() / math.log(193)
        assert token_confidence(emission.logprob, emission.entropy, 193, "max_prob") == pytest.approx(highest)
        assert token_confidence(emission.logprob, emission.entropy, 193, "entropy") == pytest.approx(gibbs)


def test_confidence_at_its_ends() -> None:
    even = Emission(3, 0, 0, -math.log(193), math.log(193))
    sure = Emission(3, 0, 0, 0.0, 0.0)
    unlikely = Emission(3, 0, 0, -20.0, 0.1)
    for method in ("max_prob", "entropy"):
        assert token_confidence(even.logprob, even.entropy, 193, method) == pytest.approx(0, abs=1e-12)
        assert token_confidence(sure.logprob, sure.entropy, 193, method) == 1
    assert token_confidence(unlikely.logprob, unlikely.entropy, 193, "max_prob") == 0


@pytest.mark.parametrize(("aggregation", "expected"), [("mean", 0.75), ("min", 0.5), ("prod", 0.5)])
def test_confidence_of_words_and_segments(aggregation: str, expected: float) -> None:
    first, second = emissions((" Go", 0, 1))[0], emissions((".", 2, 1))[0]
    half = math.log((0.5 * 192 + 1) / 193)
    found = [Emission(first.token, 0, 1, 0.0, 0.0), Emission(second.token, 2, 1, half, 1.0)]
    (segment,) = segments(found, aggregation=aggregation)
    assert [token.confidence for token in segment.token_times] == [1, pytest.approx(0.5)]
    assert segment.words[0].confidence == pytest.approx(expected)
    assert segment.confidence == pytest.approx(expected)
