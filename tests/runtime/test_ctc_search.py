"""CTC's greedy search and NeMo's times of it, by hand; windows that are stitched frame by frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parakeet_tokens import pocket_tokenizer

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.ctc import ctc_runs, greedy_ctc
from runtime.families import open_recognizer
from runtime.families.parakeet_ctc.family import FAMILY
from runtime.families.parakeet_ctc.recognizer import CtcRecognizer
from runtime.families.parakeet_ctc.search import FrameChoice, ctc_tokens, frame_choices
from runtime.fastconformer.options import FastConformerOptions
from runtime.fastconformer.transcript import TimedToken, timed_segments
from runtime.fastconformer.windows import WindowSizes, cut_windows
from runtime.results import Segment

TOKENIZER = pocket_tokenizer()
BLANK = 192
FRAME_S = 0.08
SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def frames(*pieces: str) -> list[FrameChoice]:
    """A frame for each piece, written with a space for U+2581; `_` is the blank."""
    ids = [BLANK if piece == "_" else TOKENIZER.pieces.index(piece.replace(" ", "\u2581")) for piece in pieces]
    return [FrameChoice(token, -0.1, 0.2) for token in ids]


def tokens(found: Sequence[FrameChoice], **options: object) -> list[TimedToken]:
    return ctc_tokens(found, TOKENIZER, FastConformerOptions.parse(options))


def spans(*pieces: str) -> list[tuple[str, int, int]]:
    found = tokens(frames(*pieces))
    return [(TOKENIZER.pieces[t.token].replace("\u2581", " "), t.span.start, t.span.end) for t in found]


def segments(*pieces: str, **options: object) -> tuple[Segment, ...]:
    chosen = FastConformerOptions.parse(options)
    found = ctc_tokens(frames(*pieces), TOKENIZER, chosen)
    return timed_segments(found, TOKENIZER, chosen, FRAME_S, lambda start, end: (round(start, 6), round(end, 6)))


def test_runs_are_tokens_and_a_blank_parts_two_of_them() -> None:
    ids = np.array([7, 7, 0, 7, 3, 3, 0, 0, 5])
    assert ctc_runs(ids, 0) == [range(2), range(3, 4), range(4, 6), range(8, 9)]
    assert ctc_runs(np.array([], np.int64), 0) == ctc_runs(np.zeros(4, np.int64), 0) == []


@settings(max_examples=100)
@given(ids=st.lists(st.integers(0, 3), max_size=30))
def test_any_frames(ids: list[int]) -> None:
    runs = ctc_runs(np.array(ids, np.int64), 0)
    assert [ids[run.start] for run in runs] == [token for token, _ in groupby(ids) if token]
    assert sum(map(len, runs)) == sum(token > 0 for token in ids)
    logits = np.eye(4, dtype=np.float32)[ids] * 5 if ids else np.empty((0, 4), np.float32)
    found, probabilities = greedy_ctc(logits, 0)
    assert found.tolist() == [token for token, _ in groupby(ids) if token]
    assert probabilities == pytest.approx([math.exp(5) / (math.exp(5) + 3)] * len(found))


def test_times_are_nemo_s() -> None:
    """By hand, after ctc_decoding.py: lengths count from first frame to first frame, their sums are the ends.

    First frames: Go at 2, on at 5, red at 9. NeMo's token_lengths are 2, 3, 4, their sums 2, 5, 9; starts are the sums
    before, and for the first one frame before its own.
    """
    pieces = ("_", "_", " Go", " Go", "_", " on", " on", "_", "_", " red", "_")
    assert spans(*pieces) == [(" Go", 1, 2), (" on", 2, 5), (" red", 5, 9)]
    assert spans(" Go", "_", " on") == [(" Go", 0, 0), (" on", 0, 2)]
    assert spans() == spans("_", "_") == []


def test_a_mark_has_no_length() -> None:
    """NeMo's _refine_timestamps: its end is its start, which is where the token before it has its first frame."""
    assert spans("_", "_", " Go", "_", "_", ".", "_", " on") == [(" Go", 1, 2), (".", 2, 2), (" on", 5, 7)]
    # But for one that comes first.
    assert spans("_", "_", ".", " Go") == [(".", 1, 2), (" Go", 2, 3)]


def test_words_and_segments() -> None:
    first, second = segments("_", "_", " Go", "_", "_", ".", "_", " on", "_", " red", " red")
    assert [(word.text, word.start, word.end) for word in first.words or ()] == [("Go.", 0.08, 0.16)]
    assert [(word.text, word.start, word.end) for word in second.words or ()] == [
        ("on", 0.4, 0.56),
        ("red", 0.56, 0.72),
    ]
    assert (first.text, first.start, first.end) == ("Go.", 0.08, 0.16)
    assert (second.text, second.start, second.end) == ("on red", 0.4, 0.72)
    # From the mark's end, frame 2, to the next word's start, 5: .24 s.
    assert [segment.text for segment in segments(" Go", ".", " on", segment_gap_s=1.0)] == ["Go.", "on"]


def test_a_pause_that_was_left_out_is_between_two_tokens() -> None:
    """What is heard are two stretches of a second, the other one a minute later: each end lies where its token does."""

    def place(start_s: float, end_s: float) -> tuple[float, float]:
        first, last, later = (0.0, 1.0, 0.0) if (start_s + end_s) / 2 < 1 else (61.0, 62.0, 60.0)
        return round(min(max(start_s + later, first), last), 6), round(min(max(end_s + later, first), last), 6)

    options = FastConformerOptions()
    found = ctc_tokens(frames(*["_"] * 5, " Go", *["_"] * 8, " on"), TOKENIZER, options)
    (segment,) = timed_segments(found, TOKENIZER, options, FRAME_S, place)
    times = [(word.text, word.start, word.end) for word in segment.words or ()]
    # Frames 5 and 14, as NeMo has it of the whole recording: on lasts from Go's frame to its own.
    assert times == [("Go", 0.32, 0.4), ("on", 0.4, 61.12)]


def test_a_token_is_as_sure_as_its_frames() -> None:
    """NeMo aggregates the frames of a token without its blanks; words aggregate tokens."""
    token = frames(" Go")[0].token
    half = math.log((0.5 * 192 + 1) / 193)
    found = [FrameChoice(token, 0.0, 0.0), FrameChoice(token, half, 1.0), FrameChoice(BLANK, half, 1.0)]
    for aggregation, expected in (("mean", 0.75), ("min", 0.5), ("prod", 0.5)):
        (timed,) = tokens(found, aggregation=aggregation)
        assert timed.confidence == pytest.approx(expected)
        assert timed.logprob == 0.0


def test_what_is_likeliest_in_a_frame() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32)) + 30
    first, second = frame_choices(logits)
    assert (first.token, second.token) == (0, 2)
    assert first.logprob == pytest.approx(math.log(0.5), rel=1e-5)
    assert first.entropy == pytest.approx(1.5 * math.log(2), rel=1e-5)
    assert second.logprob == pytest.approx(math.log(0.8), rel=1e-5)


# --- an artifact ---


@pytest.fixture(scope="module")
def recognizer(ctc_artifact: Path) -> CtcRecognizer:
    found = open_recognizer(open_artifact(ctc_artifact), threads=1)
    assert isinstance(found, CtcRecognizer)
    return found


def _ids(recognizer: CtcRecognizer, samples: np.ndarray) -> list[int]:
    """The likeliest id of each frame, by the graphs without our runtime."""
    folder = recognizer._artifact.path
    opened = {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("frontend", "encoder")
    }
    inputs = {"audio": samples[None].astype(np.float32), "length": np.array([len(samples)])}
    features, count = opened["frontend"].run(None, inputs)
    logits, frames_len = opened["encoder"].run(None, {"features": features, "features_len": count})
    ids: list[int] = logits[0, : int(frames_len[0])].argmax(axis=1).tolist()
    return ids


def _collapsed(ids: Sequence[int]) -> list[int]:
    return [token for token, _ in groupby(ids) if token != BLANK]


@pytest.mark.slow
def test_a_batch_hears_what_each_recording_has(recognizer: CtcRecognizer) -> None:
    paths = [SAMPLES / name for name in ("short_en.wav", "short_en_2.wav", "short_de.wav")]
    results = recognizer.recognize_batch([open_audio(path) for path in paths])
    for path, result in zip(paths, results, strict=True):
        samples = np.concatenate(list(open_audio(path).blocks(16000)))
        expected = _collapsed(_ids(recognizer, samples))
        assert [token for segment in result.segments for token in segment.tokens] == expected
        assert result.counts is not None
        assert (result.counts["calls"], result.counts["host_calls"]) == (2, 0)


@pytest.mark.slow
def test_windows_are_put_together_frame_by_frame(recognizer: CtcRecognizer) -> None:
    """A token that reaches over a boundary is one; all frames are there once."""
    audio = open_audio(SAMPLES / "joined_en.wav")
    options = FastConformerOptions(attention="windows", chunk_s=2, left_s=1, right_s=0.4)
    result = recognizer.recognize(audio, options)
    model = recognizer.model
    sizes = WindowSizes.from_seconds(1, 2, 0.4, model.frame_s)
    ids: list[int] = []
    windows = list(cut_windows(audio.blocks(16000), model.frame_samples, model.frame_s, sizes))
    assert len(windows) > 3
    for window in windows:
        assert window.first == len(ids)
        own = _ids(recognizer, window.samples)[window.skipped :]
        ids += own[: window.kept]
    samples = np.concatenate(list(audio.blocks(16000)))
    assert len(ids) == len(_ids(recognizer, samples))
    assert [token for segment in result.segments for token in segment.tokens] == _collapsed(ids)


@pytest.mark.slow
def test_less_than_a_frame_is_nothing(recognizer: CtcRecognizer) -> None:
    result = recognizer.recognize(open_audio(SAMPLES / "short_en.wav"), FastConformerOptions(clip=(0.5, 0.505)))
    assert (result.text, result.segments) == ("", ())


def test_the_options_are_those_of_the_encoder() -> None:
    flags = FAMILY.options.flags()
    assert "--attention" in flags
    assert not {"--hotword", "--decode"} & set(flags)
