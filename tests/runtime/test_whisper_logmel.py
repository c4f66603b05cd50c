"""The numpy front-end against transformers' WhisperFeatureExtractor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from runtime.families.whisper.features import open_features
from runtime.families.whisper.logmel import LogMelStream, log_mel, mel_filters, normalise
from runtime.families.whisper.settings import WhisperFrontend

RATE = 16000
LIMIT = 1e-4


def frontend_of(n_mels: int, seconds: int) -> WhisperFrontend:
    return WhisperFrontend(n_mels=n_mels, n_samples=seconds * RATE)


def extractor(n_mels: int, seconds: int) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=n_mels, chunk_length=seconds)


def reference(audio: np.ndarray, n_mels: int, seconds: int) -> np.ndarray:
    """Features by transformers: padded to a window, never cut."""
    features = extractor(n_mels, seconds)(
        audio, sampling_rate=RATE, return_tensors="np", truncation=False, padding="max_length"
    )
    return features["input_features"][0]


def signal(kind: str, n: int) -> np.ndarray:
    generator = np.random.default_rng(n)
    time = np.arange(n) / RATE
    made = {
        "silence": np.zeros(n),
        "noise": 0.1 * generator.standard_normal(n),
        "tone": 0.9 * np.sin(2 * np.pi * 440 * time),
        "step": (time > 0.5) * 0.5,
        "quiet": 1e-5 * generator.standard_normal(n),
    }
    return made[kind].astype(np.float32)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_mel_filters_are_those_of_transformers(n_mels: int) -> None:
    np.testing.assert_allclose(mel_filters(frontend_of(n_mels, 30)), extractor(n_mels, 30).mel_filters, atol=1e-12)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("kind", ["silence", "noise", "tone", "step", "quiet"])
@pytest.mark.parametrize("n", [1, 160, 480000, 700123])
def test_features_are_those_of_transformers(n_mels: int, kind: str, n: int) -> None:
    audio = signal(kind, n)
    found = log_mel(audio, frontend_of(n_mels, 30))
    expected = reference(audio, n_mels, 30)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= LIMIT


@settings(max_examples=40)
@given(n=st.integers(1, 3 * RATE), n_mels=st.sampled_from([80, 128]), kind=st.sampled_from(["noise", "tone", "step"]))
def test_features_of_any_length(n: int, n_mels: int, kind: str) -> None:
    audio = signal(kind, n)
    expected = reference(audio, n_mels, 1)
    assert np.abs(log_mel(audio, frontend_of(n_mels, 1)) - expected).max() <= LIMIT


@pytest.mark.parametrize("fault", ["symmetric window", "gain", "no reflection"])
def test_limit_sees_a_wrong_front_end(fault: str) -> None:
    """The comparison above must fail for errors that ports have made."""
    audio = signal("noise", RATE)
    frontend = frontend_of(80, 1)
    stream = LogMelStream(frontend)
    if fault == "symmetric window":
        stream._window = np.hanning(frontend.n_fft)
    elif fault == "gain":
        stream._filters = stream._filters * 1.1
    blocks = [np.concatenate([audio, np.zeros(400, np.float32)])] if fault == "no reflection" else [audio]
    log_power = np.concatenate(list(stream.frames(blocks)), axis=1)[:, :100]
    assert np.abs(normalise(log_power, log_power.max()) - reference(audio, 80, 1)).max() > LIMIT


@settings(max_examples=40)
@given(n=st.integers(201, 4000), lengths=st.lists(st.integers(0, 700), max_size=8))
def test_blocks_of_any_length_give_the_same_frames(n: int, lengths: list[int]) -> None:
    audio = signal("noise", n)
    frontend = frontend_of(80, 1)
    cuts = np.minimum(np.cumsum(lengths), n).astype(int)
    whole = list(LogMelStream(frontend).frames([audio]))
    found = list(LogMelStream(frontend).frames(np.split(audio, cuts)))
    expected = np.concatenate(whole, axis=1) if whole else np.zeros((80, 0))
    assert expected.shape[1] == n // 160
    np.testing.assert_allclose(np.concatenate([expected[:, :0], *found], axis=1), expected, atol=1e-6)


def test_audio_too_short_to_reflect_is_refused() -> None:
    with pytest.raises(ValueError, match="200 samples cannot be reflected"):
        list(LogMelStream(frontend_of(80, 1)).frames([np.zeros(200, np.float32)]))


class Recording:
    """Blocks of an array, counting the passes over it."""

    def __init__(self, audio: np.ndarray, block: int = 5000) -> None:
        self.audio, self.block, self.passes = audio, block, 0

    def __call__(self) -> Iterator[np.ndarray]:
        self.passes += 1
        for start in range(0, len(self.audio), self.block):
            yield self.audio[start : start + self.block]


def window_of(audio: np.ndarray, seek: int, n_mels: int = 80, seconds: int = 1) -> np.ndarray:
    """transformers' window: a slice of the whole recording's features, zeros behind its end."""
    piece = reference(audio, n_mels, seconds)[:, seek : seek + 100 * seconds]
    return np.pad(piece, ((0, 0), (0, 100 * seconds - piece.shape[1])))


@settings(max_examples=30)
@given(n=st.integers(RATE + 160, 6 * RATE), steps=st.lists(st.integers(0, 100), min_size=1, max_size=8))
def test_moving_windows_of_a_long_recording(n: int, steps: list[int]) -> None:
    audio = signal("noise", n)
    frontend = frontend_of(80, 1)
    recording = Recording(audio)
    features = open_features(recording, frontend, lambda window: log_mel(window, frontend))
    assert features.is_long
    assert features.n_frames == n // 160
    assert features.duration_s == n / RATE
    seek = 0
    for step in steps:
        if seek >= features.n_frames:
            break
        assert np.abs(features.window(seek) - window_of(audio, seek)).max() <= LIMIT
        seek += step
    assert recording.passes == 2


@pytest.mark.parametrize(
    ("n", "form", "n_frames"),
    [(1, "short", 0), (161, "short", 1), (RATE, "short", 100), (RATE + 159, "short", 100), (RATE + 160, "long", 101)],
)
def test_form_follows_the_number_of_frames(n: int, form: str, n_frames: int) -> None:
    frontend = frontend_of(80, 1)
    recording = Recording(signal("noise", n))
    features = open_features(recording, frontend, lambda window: log_mel(window, frontend))
    assert (features.is_long, features.n_frames) == (form == "long", n_frames)
    features.window(0)
    assert recording.passes == (2 if form == "long" else 1)


@pytest.mark.parametrize("seek", [0, 37, 99])
def test_windows_of_a_short_recording(seek: int) -> None:
    """Behind its end the features are 0, as in openai/whisper; they would be the floor of its range in transformers."""
    audio = signal("noise", 9000)
    frontend = frontend_of(80, 1)
    features = open_features(Recording(audio), frontend, lambda window: log_mel(window, frontend))
    expected = window_of(audio, seek)
    expected[:, max(0, 9000 // 160 - seek) :] = 0.0
    assert np.abs(features.window(seek) - expected).max() <= LIMIT
