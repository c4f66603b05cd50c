"""Voice activity detection: the network against torch's operators, silero's spans, where they lie in a recording."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from vad_weights import Tensors, loudness_tensors, random_tensors, with_vad

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.errors import DamagedArtifactError, InputError
from runtime.results import Segment, SpeechSpan, Word
from runtime.timer import Timer
from runtime.vad.heard import Heard, listen
from runtime.vad.options import SpeechOptions
from runtime.vad.silero import SHAPES, VAD_NAME, SileroVad, open_vad
from runtime.vad.spans import Span, speech_spans

RATE, CHUNK = 16000, 512
SAMPLES = Path(__file__).resolve().parents[2] / "samples"
SILERO = json.loads((Path(__file__).resolve().parents[1] / "silero_spans.json").read_text())


# --- probabilities ---


def by_torch(tensors: Tensors, samples: np.ndarray) -> np.ndarray:
    """Return the network's probabilities chunk by chunk, by torch's own operators."""
    t = {name: torch.from_numpy(values) for name, values in tensors.items()}
    cell = torch.nn.LSTMCell(128, 128)
    cell.load_state_dict({name.removeprefix("decoder.rnn."): t[name] for name in t if ".rnn." in name})
    padded = torch.from_numpy(np.pad(samples, (64, -len(samples) % CHUNK)))
    state, found = None, []
    for at in range(0, len(padded) - 64, CHUNK):
        chunk = functional.pad(padded[None, None, at : at + 64 + CHUNK], (0, 64), "reflect")
        spectrum = functional.conv1d(chunk, t["stft.forward_basis_buffer"], stride=128)
        x = torch.hypot(*spectrum.split(129, dim=1))
        for layer, stride in enumerate((1, 2, 2, 1)):
            name = f"encoder.{layer}.reparam_conv"
            x = functional.conv1d(x, t[f"{name}.weight"], t[f"{name}.bias"], stride=stride, padding=1).relu()
        state = cell(x[..., 0], state)
        logit = functional.conv1d(
            state[0].relu()[..., None], t["decoder.decoder.2.weight"], t["decoder.decoder.2.bias"]
        )
        found.append(float(logit.sigmoid()))
    return np.array(found)


@pytest.mark.parametrize(
    ("n_samples", "block"),
    [*((n, 160_000) for n in (1, 511, 512, 513, 160_001, 270_000)), (20_000, 1000), (20_000, 511), (513, 1)],
)
def test_the_network_is_silero_s(n_samples: int, block: int) -> None:
    rng = np.random.default_rng(n_samples)
    samples = rng.standard_normal(n_samples) * np.abs(np.sin(np.arange(n_samples) / 9000))
    samples = (0.3 * samples).astype(np.float32)
    tensors = random_tensors(n_samples)
    with torch.no_grad():
        expected = by_torch(tensors, samples)
    blocks = (samples[at : at + block] for at in range(0, n_samples, block))
    found, counted = SileroVad(tensors).probabilities(blocks)
    assert (found.dtype, counted) == (np.float32, n_samples)
    assert len(found) < 10 or np.ptp(expected) > 0.02
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_no_samples_have_no_probability() -> None:
    probabilities, count = SileroVad(random_tensors(0)).probabilities([])
    assert (probabilities.shape, count) == ((0,), 0)
    assert speech_spans([], 0, SpeechOptions()) == ()


def test_loud_samples_and_silence_are_finite() -> None:
    for value in (0.0, 1e4, -1e4):
        probabilities, _ = SileroVad(random_tensors(1)).probabilities([np.full(RATE, value, np.float32)])
        assert np.isfinite(probabilities).all()
        assert ((probabilities >= 0) & (probabilities <= 1)).all()


def _without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    "change",
    [
        _without("decoder.decoder.2.bias"),
        lambda tensors: {**tensors, "more": np.zeros(1, np.float32)},
        lambda tensors: {**tensors, "decoder.decoder.2.bias": np.zeros(2, np.float32)},
        lambda tensors: {**tensors, "decoder.decoder.2.bias": np.zeros(1, np.float16)},
    ],
)
def test_other_parameters_are_refused(tmp_path: Path, sed_artifact: Path, change: Callable[[Tensors], Tensors]) -> None:
    artifact = with_vad(sed_artifact, tmp_path / "a", change(loudness_tensors()))
    with pytest.raises(DamagedArtifactError, match=rf"a/{VAD_NAME}: expected the f32 parameters of silero's VAD"):
        open_vad(open_artifact(artifact))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, sed_artifact: Path) -> None:
    """A header of many names would cost hundreds of times its size."""
    many = {f"tensor {number}": np.zeros(0, np.float32) for number in range(40_000)}
    artifact = with_vad(sed_artifact, tmp_path / "a", many)
    assert (artifact / VAD_NAME).stat().st_size > 2 * 2**20
    with pytest.raises(DamagedArtifactError, match=rf"a/{VAD_NAME}: expected at most 2097152 bytes"):
        open_vad(open_artifact(artifact))


def test_an_artifact_without_it_has_none(sed_artifact: Path) -> None:
    assert open_vad(open_artifact(sed_artifact)) is None
    assert set(SHAPES) == set(random_tensors(0))


# --- spans ---


@pytest.mark.parametrize("case", SILERO["cases"], ids=lambda case: case["name"])
def test_spans_are_silero_s_to_the_sample(case: dict) -> None:
    """Expected: silero-vad 6.2.3 itself, see make_silero_spans.py."""
    for options, expected in zip(SILERO["options"], case["spans"], strict=True):
        own = {"min_speech_duration_ms": 250, "min_silence_duration_ms": 100, "speech_pad_ms": 30, **options}
        parsed = SpeechOptions.parse({f"vad_{name}": value for name, value in own.items()})
        found = speech_spans(case["probabilities"], case["n_samples"], parsed)
        assert [list(span) for span in found] == expected, options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("vad_threshold", 0),
        ("vad_threshold", 1.5),
        ("vad_neg_threshold", float("nan")),
        ("vad_min_silence_duration_ms", -1),
        ("vad_speech_pad_ms", 1.5),
        ("vad_max_speech_duration_s", 0),
        ("vad_max_speech_duration_s", float("nan")),
    ],
)
def test_options_that_are_refused(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"option {option}"):
        SpeechOptions.parse({option: value})


# --- what is heard, and where it lies ---


def heard_of(samples: np.ndarray, spans: tuple[Span, ...], *, start_s: float = 0.0, pad_s: float = 0.4) -> Heard:
    audio = open_audio(samples, rate=RATE)
    return Heard(audio, start_s, None, audio.info.duration_s - start_s, spans, pad_s)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 60), min_size=2, max_size=12), st.sampled_from([8000, 16000, 32000]))
def test_what_is_heard_is_the_speech_and_nothing_else(borders: list[int], rate: int) -> None:
    """Blocks of 10 s, spans that end where blocks and other spans do."""
    borders = sorted(borders[: len(borders) // 2 * 2])
    spans = tuple((a * RATE, b * RATE) for a, b in zip(borders[::2], borders[1::2], strict=True))
    audio = open_audio((np.arange(60 * rate) % 30000 / 30000).astype(np.float32), rate=rate)
    found = [*Heard(audio, 0.0, None, 60.0, spans).blocks(rate)]
    assert all(len(block) for block in found)
    whole = np.concatenate(list(audio.blocks(rate)))
    expected = np.concatenate([whole[:0], *(whole[a * rate // RATE : b * rate // RATE] for a, b in spans)])
    np.testing.assert_array_equal(np.concatenate([whole[:0], *found]), expected)


# Two stretches: 2 to 4 s and 10 to 13 s of the recording are 0 to 2 s and 2 to 5 s of what is heard.
TWO = ((2 * RATE, 4 * RATE), (10 * RATE, 13 * RATE))


@pytest.mark.parametrize(
    ("heard", "recording"),
    [
        ((0.0, 0.5), (2.0, 2.5)),
        ((1.5, 2.0), (3.5, 4.0)),
        ((2.0, 2.5), (10.0, 10.5)),
        ((4.5, 5.2), (12.5, 13.0)),  # never behind the end
        ((1.5, 2.2), (3.5, 4.0)),  # more of it before the border
        ((1.9, 2.4), (10.0, 10.4)),  # more of it behind
        ((2.0, 2.0), (10.0, 10.0)),
        ((1.0, 1.0), (3.0, 3.0)),
    ],
)
def test_a_word_lies_in_one_stretch(heard: tuple[float, float], recording: tuple[float, float]) -> None:
    for start_s in (0.0, 0.7):
        own = heard_of(np.zeros(20 * RATE, np.float32), TWO, start_s=start_s)
        assert own.place(*heard) == tuple(round(time + start_s, 6) for time in recording)


def test_a_segment_reaches_from_its_first_word_to_its_last() -> None:
    words = (Word("a", 1.7, 1.9, 0.5), Word("b", 2.0, 2.4, 0.5))
    segment = Segment(1.6, 2.5, text="a b", tokens=(1, 2), words=words)
    placed = heard_of(np.zeros(20 * RATE, np.float32), TWO).placed(segment)
    assert placed.words == (Word("a", 3.7, 3.9, 0.5), Word("b", 10.0, 10.4, 0.5))
    assert (placed.start, placed.end) == (3.7, 10.4)


@pytest.mark.parametrize(
    ("heard", "recording"),
    [
        ((0.0, 2.0), (2.0, 4.0)),
        ((2.0, 5.0), (10.0, 13.0)),
        ((0.5, 3.0), (2.5, 11.0)),  # speech on both sides
        ((1.7, 3.0), (10.0, 11.0)),  # only padding before the border
        ((0.5, 2.3), (2.5, 4.0)),  # only padding behind it
        ((1.55, 3.0), (10.0, 11.0)),  # a little more: whisper-tiny.en began "Eight of spades" there
        ((1.8, 2.3), (10.0, 10.3)),  # only padding on both sides: where there is more of it
        ((0.2, 0.2), (2.2, 2.2)),
        ((0.0, 5.1), (2.0, 13.0)),
    ],
)
def test_a_segment_reaches_over_stretches_but_not_into_padding(
    heard: tuple[float, float], recording: tuple[float, float]
) -> None:
    segment = heard_of(np.zeros(20 * RATE, np.float32), TWO).placed(Segment(*heard, text="a", tokens=(1,)))
    assert (segment.start, segment.end) == recording
    assert (segment.text, segment.tokens) == ("a", (1,))


@given(
    st.lists(st.integers(1, 50), min_size=2, max_size=20),
    st.lists(st.floats(0, 30, allow_nan=False), min_size=2, max_size=20),
)
def test_times_rise_and_lie_in_speech(steps: list[int], times: list[float]) -> None:
    borders = np.cumsum(steps[: len(steps) // 2 * 2]) * 4000
    spans = tuple((int(a), int(b)) for a, b in zip(borders[::2], borders[1::2], strict=True))
    own = replace(heard_of(np.zeros(RATE, np.float32), spans), clip_s=300.0)
    times = sorted(min(time, own.seconds) for time in times)
    words = [own.place(a, b) for a, b in pairwise(times)]
    assert all(a <= b for a, b in words)
    assert all(before[0] <= after[0] and before[1] <= after[1] for before, after in pairwise(words))
    for word in words:
        assert any(a / RATE <= word[0] <= word[1] <= b / RATE for a, b in spans)
    for a, b in pairwise(times):
        segment = own.placed(Segment(a, b, "", ()))
        assert segment.start <= segment.end


class _Nothing:
    def synchronize(self) -> None:
        raise AssertionError("the VAD runs on the host")


def test_a_clip_counts_from_the_recording_s_start() -> None:
    """3 s of noise at 5 s of a recording; the clip begins at 4 s."""
    samples = np.zeros(12 * RATE, np.float32)
    samples[5 * RATE : 8 * RATE] = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE)
    timer = Timer(_Nothing())
    options = SpeechOptions(clip=(4, None), vad_speech_pad_ms=0)
    heard = listen(open_audio(samples, rate=RATE), options, SileroVad(loudness_tensors()), timer)
    assert heard.speech == (SpeechSpan(pytest.approx(5, abs=0.04), pytest.approx(8, abs=0.04)),)
    assert heard.clip_s == 8
    assert heard.seconds == pytest.approx(3, abs=0.08)
    assert sum(map(len, heard.blocks(RATE))) == round(heard.seconds * RATE)
    assert list(timer.take()) == ["vad_s"]


def test_without_a_vad_all_is_heard() -> None:
    timer = Timer(_Nothing())
    audio = open_audio(np.zeros(RATE, np.float32), rate=RATE)
    for options, vad in ((SpeechOptions(), None), (SpeechOptions(vad=False), SileroVad(loudness_tensors()))):
        heard = listen(audio, options, vad, timer)
        assert (heard.speech, heard.seconds) == (None, 1.0)
        assert sum(map(len, heard.blocks(RATE))) == RATE
    assert timer.take() == {}
    with pytest.raises(InputError, match="--vad: expected an artifact with a VAD"):
        listen(audio, SpeechOptions(vad=True), None, timer)
    silent = listen(audio, SpeechOptions(), SileroVad(loudness_tensors()), timer)
    assert (silent.speech, silent.seconds, list(silent.blocks(RATE))) == ((), 0, [])
