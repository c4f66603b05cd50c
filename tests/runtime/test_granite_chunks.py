"""Long recordings of Granite Speech: where chunks are cut, what is held in memory, how their texts are joined."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.errors import InputError
from runtime.families import open_recognizer
from runtime.families.granite_speech.chunks import Chunk, TextJoiner, cut_chunks, join_texts
from runtime.families.granite_speech.options import GraniteOptions
from runtime.families.granite_speech.recognizer import GraniteRecognizer
from runtime.results import Transcript

RATE = 16000
SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def blocks_of(samples: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (samples[at : at + size] for at in range(0, len(samples), size))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(round(seconds * RATE)).astype(np.float32)


@given(
    n_samples=st.integers(1, 4000),
    block=st.integers(1, 1500),
    chunk_s=st.floats(1.0, 9.0),
    silences=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 400)), max_size=4),
)
def test_chunks_tile_the_recording(n_samples: int, block: int, chunk_s: float, silences: list[tuple[int, int]]) -> None:
    """At 100 Hz, where 20 ms are two samples."""
    rate = 100
    samples = np.random.default_rng(0).standard_normal(n_samples).astype(np.float32)
    for start, length in silences:
        samples[start : start + length] = 0
    chunks = list(cut_chunks(blocks_of(samples, block), rate, chunk_s))
    assert np.array_equal(np.concatenate([chunk.samples for chunk in chunks]), samples)
    at = 0
    for chunk in chunks:
        assert chunk.start_s == at / rate
        assert len(chunk.samples) <= chunk_s * rate
        if len(chunks) > 1:
            assert len(chunk.samples) >= min(1.0, chunk_s / 4 - 0.04) * rate
        at += len(chunk.samples)
    if n_samples <= int(chunk_s * rate / 2) * 2:
        assert len(chunks) == 1


@pytest.mark.parametrize("pause_at", [20.5, 24.0, 29.7])
@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_a_cut_is_in_the_middle_of_a_pause(pause_at: float, floor: float) -> None:
    """Of 0.4 s, anywhere in the last third; gaps of 0.1 s, as in front of a plosive, are none."""
    speech = noise(70)
    for gap in range(70):
        speech[round((gap + 0.3) * RATE) : round((gap + 0.4) * RATE)] = 0
    speech[round((pause_at - 0.2) * RATE) : round((pause_at + 0.2) * RATE)] *= floor
    first, second, *_ = cut_chunks(blocks_of(speech, RATE), RATE, 30)
    assert second.start_s == pytest.approx(pause_at, abs=0.1)
    assert len(first.samples) == round(second.start_s * RATE)


@given(at=st.floats(20.0, 29.2), seconds=st.floats(0.4, 3), floor=st.sampled_from([0.0, 0.03]), seed=st.integers(0, 99))
def test_a_cut_is_within_a_silence(at: float, seconds: float, floor: float, seed: int) -> None:
    """At 1 kHz, where 20 ms are 20 samples."""
    rate = 1000
    speech = np.random.default_rng(seed).standard_normal(50 * rate).astype(np.float32)
    speech[round(at * rate) : round((at + seconds) * rate)] *= floor
    second = list(cut_chunks([speech], rate, 30))[1]
    assert at <= second.start_s <= at + seconds


def test_without_a_pause_the_quietest_place_is_taken() -> None:
    speech = noise(40)
    speech[round(23.0 * RATE) : round(23.3 * RATE)] *= 0.7
    _, second = cut_chunks([speech], RATE, 30)
    assert second.start_s == pytest.approx(23.15, abs=0.05)


@pytest.mark.parametrize("seconds", [30.0, 30.001, 30.02, 30.5, 31.0, 60.0])
def test_no_rest_is_too_short_to_hear_anything_in(seconds: float) -> None:
    *_, last = cut_chunks([noise(seconds)], RATE, 30)
    assert len(last.samples) >= RATE


@pytest.mark.parametrize(
    ("samples", "silent"),
    [
        (np.zeros(10, np.float32), True),
        (np.full(10, 1e-9, np.float32), True),  # the resampler's trace of what came before
        (np.array([0, 2**-23, 0], np.float32), False),  # one step of 24 bits
        (np.array([0, -(2**-15)], np.float32), False),  # one step of 16 bits
    ],
)
def test_digital_silence(samples: np.ndarray, *, silent: bool) -> None:
    assert Chunk(samples, 0.0).is_silent is silent


def test_what_is_held_does_not_grow() -> None:
    """An hour at 16 kHz is 230 MB; two chunks and a few blocks of 30 s are 10 MB."""
    block = noise(10)

    def peak(n_blocks: int) -> int:
        tracemalloc.start()
        chunks = sum(1 for _ in cut_chunks((block for _ in range(n_blocks)), RATE, 30))
        assert chunks >= n_blocks / 3
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(60) <= peak(12) + 1e5 < 2e7


# --- texts ---


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["one", "two"], "one two"),
        ([" one ", "\n two\n"], "one two"),
        (["", "one", " ", "two", ""], "one two"),
        (["今日は。", "晴れです"], "今日は。晴れです"),
        (["今日は", "good"], "今日は good"),
        (["안녕", "하세요"], "안녕 하세요"),
        (["", " "], ""),
        ([], ""),
    ],
)
def test_texts_are_joined(texts: list[str], joined: str) -> None:
    assert join_texts(texts) == joined


@given(chunks=st.lists(st.lists(st.text("ab .\n今。", max_size=4), max_size=5), max_size=4))
def test_pieces_in_a_row_are_the_text(chunks: list[list[str]]) -> None:
    """However the tokens cut a chunk's text; nothing that was handed on is taken back."""
    told: list[str] = []
    joiner = TextJoiner(told.append)
    for pieces in chunks:
        joiner.begin()
        for piece in pieces:
            joiner.push(piece)
    assert "".join(told) == join_texts("".join(pieces) for pieces in chunks)
    assert all(told)
    texts = ["".join(pieces).strip() for pieces in chunks]
    assert "".join(told).replace(" ", "") == "".join(texts).replace(" ", "")


# --- recordings ---


@pytest.fixture(scope="module")
def recognizer(granite_artifact: Path) -> GraniteRecognizer:
    opened = open_recognizer(open_artifact(granite_artifact), threads=1)
    assert isinstance(opened, GraniteRecognizer)
    return opened


def recording() -> np.ndarray:
    """12 s of speech, 12 s of digital silence, 12 s of speech."""
    speech: np.ndarray = soundfile.read(SAMPLES / "long_en.wav", dtype="float32")[0]
    return np.concatenate([speech[: 12 * RATE], np.zeros(12 * RATE, np.float32), speech[12 * RATE : 24 * RATE]])


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def recognize(recognizer: GraniteRecognizer, path: Path, on_text: Any = None, **options: Any) -> Transcript:
    options = {"max_new_tokens": 12, "chunk_s": 5, "repetition_guard": False, **options}
    return recognizer.recognize(open_audio(path), GraniteOptions.parse(options), None, on_text)


def test_segments_tile_the_recording_and_silence_is_not_decoded(recognizer: GraniteRecognizer, tmp_path: Path) -> None:
    result = recognize(recognizer, write(tmp_path / "long.wav", recording()))
    segments = result.segments
    assert (segments[0].start, segments[-1].end) == (0.0, 36.0)
    assert all(before.end == after.start for before, after in pairwise(segments))
    assert all(1 <= segment.end - segment.start <= 5 for segment in segments)
    silent = [segment for segment in segments if segment.finish == "silence"]
    assert len(silent) >= 2
    for segment in silent:
        assert 12 <= segment.start < segment.end <= 24
        assert (segment.text, segment.tokens, segment.avg_logprob) == ("", (), None)
    assert f"{len(silent)} of {len(segments)} chunks silent, not decoded" in result.remark
    assert result.text == " ".join(segment.text for segment in segments if segment.text)


def test_a_chunk_is_heard_as_a_recording_of_its_own(recognizer: GraniteRecognizer, tmp_path: Path) -> None:
    """Nothing of the others reaches it, and its times are where its samples are."""
    samples = recording()
    for segment in recognize(recognizer, write(tmp_path / "long.wav", samples)).segments[::3]:
        part = samples[round(segment.start * RATE) : round(segment.end * RATE)]
        alone = recognize(recognizer, write(tmp_path / "part.wav", part))
        (own,) = alone.segments
        assert (own.text, own.tokens, own.finish) == (segment.text, segment.tokens, segment.finish)


def test_a_clip_in_chunks(recognizer: GraniteRecognizer, tmp_path: Path) -> None:
    samples = recording()
    clipped = recognize(recognizer, write(tmp_path / "long.wav", samples), clip=(2.5, 11))
    part = samples[round(2.5 * RATE) : 11 * RATE]
    alone = recognize(recognizer, write(tmp_path / "part.wav", part))
    assert clipped.text == alone.text
    spans = [(segment.start, segment.end) for segment in clipped.segments]
    assert spans == [(pytest.approx(s.start + 2.5), pytest.approx(s.end + 2.5)) for s in alone.segments]
    assert len(spans) > 1


def test_digital_silence_at_another_rate(recognizer: GraniteRecognizer, tmp_path: Path) -> None:
    """The resampler leaves a trace of the speech before; what is far from it is silent all the same."""
    samples = np.concatenate([noise(4) * np.float32(0.1), np.zeros(20 * RATE, np.float32)])
    result = recognize(recognizer, write(tmp_path / "44k.wav", samples, 44100), chunk_s=3)
    assert [segment.finish for segment in result.segments][1:] == ["silence"] * (len(result.segments) - 1)


def test_progress_and_pieces(recognizer: GraniteRecognizer, tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", recording())
    told: list[tuple[float, float]] = []
    pieces: list[str] = []
    options = GraniteOptions.parse({"max_new_tokens": 12, "chunk_s": 5, "repetition_guard": False})
    result = recognizer.recognize(
        open_audio(path), options, lambda done, total: told.append((done, total)), pieces.append
    )
    assert [done for done, _ in told] == [segment.end for segment in result.segments]
    assert {total for _, total in told} == {36.0}
    assert "".join(pieces) == result.text
    assert len(pieces) > len(result.segments)


def test_chunks_beyond_the_context_are_refused_before_anything_is_computed(
    recognizer: GraniteRecognizer, tmp_path: Path
) -> None:
    """The small network has 1024 positions: 102.4 s of audio without an instruction."""
    path = write(tmp_path / "long.wav", np.tile(recording(), 4))
    recognizer.model.timer.take()
    with pytest.raises(
        InputError, match=r"expected fewer tokens than 1024, .* found \d+, 1440 of them audio; .*--chunk"
    ):
        recognize(recognizer, path, chunk_s=200)
    assert not recognizer.model.timer.take()
    assert recognize(recognizer, path, chunk_s=90, max_new_tokens=1).segments


PEAK = """
import json, sys
from pathlib import Path
from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.families import family_of, open_recognizer
from verify.environment import peak_resident_bytes
artifact = open_artifact(Path(sys.argv[1]))
options = family_of(artifact).options.parse({"max_new_tokens": 2})
result = open_recognizer(artifact, threads=1).recognize(open_audio(sys.argv[2]), options)
print(json.dumps({"peak": peak_resident_bytes(), "segments": len(result.segments)}))
"""


@pytest.mark.slow
def test_an_hour_needs_no_more_than_three_minutes(granite_artifact: Path, tmp_path: Path) -> None:
    """One that is held whole takes 230 MB more."""
    minute = np.tile(recording(), 2)[: 60 * RATE]

    def run(minutes: int) -> dict[str, int]:
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
            for index in range(minutes):
                file.write(np.roll(minute, index * 1000))  # no two minutes are equal
        command = [sys.executable, "-c", PEAK, str(granite_artifact), str(path)]
        told: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return told

    short, long = run(3), run(60)
    assert long["segments"] >= 120
    assert long["peak"] - short["peak"] < 24e6, (short, long)
