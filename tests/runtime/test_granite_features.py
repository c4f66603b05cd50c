"""Granite Speech's features against transformers' feature extractor."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from granite_features import feature_extractor
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from runtime.audio import open_audio
from runtime.families.granite_speech.features import log_mel, n_frames
from runtime.families.granite_speech.settings import GraniteDims, GraniteFrontend

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
FRONTEND = GraniteFrontend()
# transformers cannot reflect the edges of fewer samples.
LEAST = 257


@pytest.fixture(scope="module")
def extractor() -> Any:
    return feature_extractor(exact=True)


def expected(extractor: Any, samples: np.ndarray) -> np.ndarray:
    return extractor(torch.from_numpy(samples))["input_features"][0].numpy()


def recording(name: str) -> np.ndarray:
    return np.concatenate(list(open_audio(SAMPLES / name).blocks(16000)))


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, count).astype(np.float32)


@pytest.mark.parametrize("name", ["short_en.wav", "short_de.wav", "jfk.flac", "nospeech.wav"])
def test_features_of_recordings_are_transformers(extractor: Any, name: str) -> None:
    samples = recording(name)
    found = log_mel(samples, FRONTEND)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(extractor, samples), atol=1e-5)


@pytest.mark.parametrize("name", ["short_en_2.wav", "jfk.flac"])
def test_float32_as_transformers_has_it_is_as_near(name: str) -> None:
    samples = recording(name)
    wanted = expected(feature_extractor(), samples)
    error = np.linalg.norm(log_mel(samples, FRONTEND) - wanted) / np.linalg.norm(wanted)
    assert error <= 1e-5


@pytest.mark.parametrize("count", [LEAST, 319, 320, 479, 480, 481, 640, 16000, 199 * 320, 201 * 320 - 1, 1024 * 320])
def test_features_of_any_length_are_transformers(extractor: Any, count: int) -> None:
    samples = noise(count)
    found = log_mel(samples, FRONTEND)
    assert len(found) == n_frames(count, FRONTEND)
    np.testing.assert_allclose(found, expected(extractor, samples), atol=1e-5)


@settings(max_examples=25)
@given(count=st.integers(LEAST, 4000), data=st.data())
def test_features_of_anything_are_transformers(extractor: Any, count: int, data: st.DataObject) -> None:
    elements = st.floats(-1, 1, width=32, allow_subnormal=False)
    samples = data.draw(st_numpy.arrays(np.float32, count, elements=elements, fill=elements))
    # A power at the floor's edge may lie on either side of it in float32; a faint hiss takes it off the edge.
    samples = samples + np.float32(1e-3) * noise(count, 1)
    np.testing.assert_allclose(log_mel(samples, FRONTEND), expected(extractor, samples), atol=1e-5)


def test_silence_is_finite_and_transformers(extractor: Any) -> None:
    samples = np.zeros(8000, np.float32)
    np.testing.assert_array_equal(log_mel(samples, FRONTEND), -1.5)
    np.testing.assert_array_equal(expected(extractor, samples), -1.5)


@given(count=st.integers(1, 20 * 16000))
def test_as_many_frames_and_embeddings_as_transformers_counts(extractor: Any, count: int) -> None:
    dims = dict.fromkeys(GraniteDims.model_fields, 1) | {"window": 15, "downsample": 5}
    embeds = GraniteDims(**dims).n_embeds(n_frames(count, FRONTEND))
    assert [embeds] == extractor._get_num_audio_features([max(count, 160)])


@pytest.mark.parametrize("count", [1, 2, 100, 255, 256])
def test_a_recording_too_short_to_reflect_is_padded_to_one_frame(extractor: Any, count: int) -> None:
    samples = noise(count)
    found = log_mel(samples, FRONTEND)
    assert found.shape == (1, 160)
    np.testing.assert_allclose(found, expected(extractor, np.pad(samples, (0, LEAST - count))), atol=1e-5)


def test_another_front_end_is_transformers() -> None:
    sizes = {"n_fft": 256, "win_length": 200, "hop_length": 80, "n_mels": 40}
    samples = noise(3333)
    found = log_mel(samples, GraniteFrontend(sample_rate=8000, **sizes))
    other = feature_extractor(exact=True, sampling_rate=8000, **sizes)
    np.testing.assert_allclose(found, expected(other, samples), atol=1e-5)


def test_memory_grows_with_the_samples_alone() -> None:
    def peak(seconds: int) -> int:
        samples = np.ones(seconds * 16000, np.float32)
        tracemalloc.start()
        log_mel(samples, FRONTEND)
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return taken

    assert peak(90) - peak(30) <= 3 * 60 * 16000 * np.dtype(np.float32).itemsize


@pytest.mark.parametrize("change", [{"hop_length": 161}, {"n_fft": 400}, {"win_length": 401}])
def test_a_wrong_front_end_is_seen(extractor: Any, change: dict[str, int]) -> None:
    samples = recording("short_en.wav")
    found = log_mel(samples, FRONTEND.model_copy(update=change))
    wanted = expected(extractor, samples)
    assert found.shape != wanted.shape or np.abs(found - wanted).max() > 1e-4
