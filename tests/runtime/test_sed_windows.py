"""A long recording in windows against one run over the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sed_reference import HOP, RATE, clip, long_recording, plain_events, plain_scores, recognizer_of, write

from runtime.audio import open_audio
from runtime.families.cnn8rnn import recognizer as recognizer_module
from runtime.families.cnn8rnn.options import Cnn8RnnOptions
from runtime.families.cnn8rnn.recognizer import Cnn8RnnRecognizer
from runtime.families.cnn8rnn.settings import Cnn8RnnFrontend, Cnn8RnnSettings
from runtime.families.cnn8rnn.windows import Window, cut_windows
from runtime.results import SoundEvents

# Largest difference of a score: what is left of the GRU's lack of a past after 4 s.
LIMIT = 1e-4
SEAMS = {"window_frames": 1000, "context_frames": 400}
WITH_SCORES = Cnn8RnnOptions(scores=True)


# --- where windows are cut ---


def frames_of(samples: np.ndarray, frontend: Cnn8RnnFrontend) -> np.ndarray:
    """Each frame's samples [n_frames, n_fft], reflected at both ends, instead of its spectrum."""
    padded = np.pad(samples, frontend.n_fft // 2, mode="reflect")
    starts = range(0, len(samples) + 1, frontend.hop_length)
    return np.stack([padded[start : start + frontend.n_fft] for start in starts])


@settings(max_examples=300)
@given(st.data())
def test_every_frame_is_that_of_the_whole_and_kept_once(data: st.DataObject) -> None:
    hop = data.draw(st.integers(2, 6))
    fe = Cnn8RnnFrontend(hop_length=hop, n_fft=2 * data.draw(st.integers(1, 3 * hop - 1)))
    context = 4 * data.draw(st.integers(1, 3))
    cut = Cnn8RnnSettings(window_frames=2 * context + 4 * data.draw(st.integers(1, 4)), context_frames=context)
    samples = np.arange(1, data.draw(st.integers(1, 800)) + 1, dtype=np.float32)
    sizes = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=5))
    ends = np.cumsum([sizes[i % len(sizes)] for i in range(len(samples))])
    blocks = [block for block in np.split(samples, ends[ends < len(samples)]) if len(block)]

    padded = np.pad(samples, (0, max(0, 3 * hop - len(samples))))
    whole, n_frames = frames_of(padded, fe), 1 + len(samples) // hop
    seen, scores, start = [], [], 0
    for index, window in enumerate(cut_windows(blocks, fe, cut)):
        given_frames = frames_of(window.samples, fe)
        start = index * (cut.window_frames - 2 * context)
        body = given_frames[window.frames]
        np.testing.assert_array_equal(body, whole[start : start + len(body)])
        assert len(body) <= cut.window_frames
        seen += given_frames[window.kept_frames].tolist()
        scores += list(range(start // 4, (start + len(body)) // 4))[window.scores]
        assert window.n_frames == len(seen)
    np.testing.assert_array_equal(seen, whole[:n_frames])
    assert scores == list(range(max(1, n_frames // 4)))


@pytest.mark.parametrize(("n_frames", "windows"), [(1, 1), (40, 1), (41, 2), (64, 2), (65, 3)])
def test_no_more_windows_than_needed(n_frames: int, windows: int) -> None:
    """Windows of 40 frames advance by 24."""
    fe, cut = Cnn8RnnFrontend(), Cnn8RnnSettings(window_frames=40, context_frames=8)
    samples = np.zeros((n_frames - 1) * HOP + 1, np.float32)
    assert len(list(cut_windows([samples], fe, cut))) == windows


# --- scores and events of the trained model ---


@pytest.fixture(scope="module")
def seams(sed_artifact: Path) -> Cnn8RnnRecognizer:
    """Ten-second windows that advance by two seconds."""
    return recognizer_of(sed_artifact, **SEAMS)


@pytest.fixture(scope="module")
def minute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sed") / "minute.wav", long_recording(65))


def difference(found: SoundEvents, expected: np.ndarray) -> float:
    assert found.scores.scores.shape == expected.shape
    return float(np.abs(found.scores.scores - expected).max())


def events_by_score(found: SoundEvents, labels: tuple[str, ...], n_scores: int) -> list[tuple[int, int, int]]:
    return [
        (
            labels.index(event.label),
            round(event.onset / 0.04),
            n_scores if event.offset == round(found.audio.duration_s, 6) else round(event.offset / 0.04),
        )
        for event in found.events
    ]


@pytest.mark.parametrize("cut", [{}, SEAMS], ids=["64 s windows", "10 s windows"])
def test_windows_equal_one_run(sed_artifact: Path, minute: Path, cut: dict) -> None:
    recognizer = recognizer_of(sed_artifact, **cut)
    found = recognizer.recognize(open_audio(minute), WITH_SCORES)
    expected = plain_scores(recognizer, long_recording(65))
    assert len(expected) == 1625
    assert difference(found, expected) < LIMIT
    plain = plain_events(expected.astype(np.float32), [0.75] * 8, [0.25] * 8)
    assert len(plain) > 60
    assert events_by_score(found, recognizer.labels, 1625) == [event[:3] for event in plain]
    np.testing.assert_allclose([event.score for event in found.events], [event[3] for event in plain], atol=LIMIT)
    whole = recognizer.logmel(long_recording(65)).T
    spectrogram = found.scores.spectrogram
    pooled = [whole[i : i + spectrogram.frames_per_column].mean(axis=0) for i in range(0, len(whole), 4)]
    assert spectrogram.frames_per_column == 4
    np.testing.assert_allclose(spectrogram.db, pooled, atol=1e-3)


@pytest.mark.parametrize("samples", [0, 1, 319, 320, 640, 959, 960, 1279])
def test_the_end_is_exact_at_any_length(seams: Cnn8RnnRecognizer, tmp_path: Path, samples: int) -> None:
    """The last window ends with the recording, at its exact length; 10.24 s is where a second window begins."""
    for seconds in (9.92, 24.0):
        recording = long_recording(30)[: round(seconds * RATE) + samples]
        found = seams.recognize(open_audio(write(tmp_path / "a.wav", recording)), WITH_SCORES)
        assert difference(found, plain_scores(seams, recording)) < LIMIT
        assert found.scores.n_frames == 1 + len(recording) // HOP


def test_three_seconds_alone_and_at_the_end(seams: Cnn8RnnRecognizer, tmp_path: Path) -> None:
    """Alone they are one run at their exact length; at the end of a long recording only what came before differs."""
    short = clip("sed_1.flac")[: 3 * RATE]
    alone = seams.recognize(open_audio(write(tmp_path / "alone.wav", short)), WITH_SCORES)
    assert difference(alone, plain_scores(seams, short)) < 1e-6
    assert (alone.scores.n_frames, len(alone.scores.scores)) == (301, 75)

    behind = np.concatenate([long_recording(27), short])
    at_end = seams.recognize(open_audio(write(tmp_path / "behind.wav", behind)), WITH_SCORES)
    gap = np.abs(at_end.scores.scores[-75:] - alone.scores.scores).max(axis=1)
    assert gap[-25:].max() < 0.005
    # Zeros behind it, as in a padded window, change the last score of all.
    padded = plain_scores(seams, np.pad(short, (0, 7 * RATE)))[:75]
    assert np.abs(padded - alone.scores.scores)[-1].max() > 0.05


# --- what the comparison would catch ---

Fault = Callable[[Window], Window]


def one_score_late(window: Window) -> Window:
    scores = window.scores
    return replace(window, scores=slice(scores.start + 1, None if scores.stop is None else scores.stop + 1))


def one_frame_early(window: Window) -> Window:
    """As if one hop less were read and dropped at an inner edge."""
    return replace(window, frames=slice(window.frames.start - 1, window.frames.stop - 1))


def reflected_edge(window: Window) -> Window:
    """As if an inner window's samples began at its first frame."""
    dropped = window.frames.start * HOP
    inside = window.samples[dropped:]
    return replace(window, samples=np.concatenate([inside[dropped:0:-1], inside]))


def zero_padded(window: Window) -> Window:
    if window.scores.stop is not None:
        return window
    frames = slice(window.frames.start, window.frames.stop + 400)
    kept = slice(window.scores.start, (window.frames.stop - window.frames.start) // 4)
    return replace(window, samples=np.pad(window.samples, (0, 400 * HOP)), frames=frames, scores=kept)


@pytest.mark.parametrize("fault", [one_score_late, one_frame_early, zero_padded])
def test_a_wrong_stitch_is_seen(
    seams: Cnn8RnnRecognizer, minute: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    expected = plain_scores(seams, long_recording(65))

    def faulty(*arguments: object) -> Iterator[Window]:
        for index, window in enumerate(cut_windows(*arguments)):
            yield fault(window) if index else window

    monkeypatch.setattr(recognizer_module, "cut_windows", faulty)
    found = seams.recognize(open_audio(minute), WITH_SCORES)
    count = min(len(expected), len(found.scores.scores))
    assert np.abs(found.scores.scores[:count] - expected[:count]).max() > 50 * LIMIT


def test_reflection_at_an_inner_edge_is_seen_in_the_frames(seams: Cnn8RnnRecognizer) -> None:
    """The context hides it from the scores; the frames do not."""
    recording = long_recording(30)
    _, window, *_ = cut_windows([recording], seams.frontend, seams.settings)
    whole = seams.logmel(recording)[:, 200:1200]
    right = seams.logmel(window.samples)[:, window.frames]
    wrong = seams.logmel(reflected_edge(window).samples)[:, window.frames]
    assert np.abs(right - whole).max() < 1e-2
    assert np.abs(wrong - whole)[:, :2].max() > 1


def test_a_short_context_is_seen(sed_artifact: Path, minute: Path) -> None:
    recognizer = recognizer_of(sed_artifact, window_frames=300, context_frames=40)
    found = recognizer.recognize(open_audio(minute), WITH_SCORES)
    assert difference(found, plain_scores(recognizer, long_recording(65))) > 100 * LIMIT
