"""Long recordings: windows, the state over a chunk boundary, texts against the known ones, the limit of attention."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from parakeet_nets import ITEMS, REFERENCE, Nets, counting, plain_search, random_nets, triples

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.doctor import diagnose
from runtime.errors import InputError
from runtime.families import open_recognizer
from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.parakeet_tdt.recognizer import ParakeetRecognizer
from runtime.families.parakeet_tdt.search import DeviceSearch, Emission, HostSearch, SearchState
from runtime.families.parakeet_tdt.windows import search_windows
from runtime.fastconformer.windows import Window, WindowSizes, cut_windows
from runtime.results import Transcript

RATE = 16000
FRAME_S = 0.08
FRAME = 1280


def blocks_of(samples: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (samples[at : at + size] for at in range(0, len(samples), size))


# --- windows ---


@given(
    n_samples=st.integers(1, 900),
    block=st.integers(1, 300),
    left=st.integers(0, 12),
    chunk=st.integers(1, 40),
    right=st.integers(0, 9),
)
def test_every_frame_is_searched_once(n_samples: int, block: int, left: int, chunk: int, right: int) -> None:
    samples = np.random.default_rng(0).standard_normal(n_samples).astype(np.float32)
    windows = list(cut_windows(blocks_of(samples, block), 10, FRAME_S, WindowSizes(left, chunk, right)))
    at = 0
    for window in windows:
        assert window.first == at
        assert window.skipped == min(left, at)
        start = (window.first - window.skipped) * 10
        assert np.array_equal(window.samples, samples[start : start + len(window.samples)])
        assert len(window.samples) <= 10 * (left + chunk + right)
        if window.kept is None:
            assert start + len(window.samples) == n_samples
        else:
            assert max(1, chunk // 2) <= window.kept <= chunk
            assert len(window.samples) - 10 * (window.skipped + window.kept) >= 10 * right
            at += window.kept
    assert [window.kept is None for window in windows] == [False] * (len(windows) - 1) + [True]


@pytest.mark.parametrize("pause_at", [21.0, 22.5, 24.0])
@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_a_seam_is_in_the_middle_of_a_pause(pause_at: float, floor: float) -> None:
    """Of 0.4 s; gaps of 0.1 s, as in front of a plosive, are none."""
    rng = np.random.default_rng(0)
    speech = rng.standard_normal(40 * RATE)
    for gap in range(40):
        speech[round((gap + 0.3) * RATE) : round((gap + 0.4) * RATE)] = 0
    speech[round((pause_at - 0.2) * RATE) : round((pause_at + 0.2) * RATE)] *= floor
    sizes = WindowSizes.from_seconds(5, 25, 2, FRAME_S)
    first = next(cut_windows(blocks_of(speech.astype(np.float32), RATE), FRAME, FRAME_S, sizes))
    assert first.kept is not None
    assert first.kept * FRAME_S == pytest.approx(pause_at, abs=0.1)


def test_boundaries_in_silence_are_far_from_both_ends_of_it() -> None:
    silence = np.zeros(40 * RATE, np.float32)
    first = next(cut_windows([silence], FRAME, FRAME_S, WindowSizes.from_seconds(5, 25, 2, FRAME_S)))
    assert first.kept is not None
    assert 20 < first.kept * FRAME_S < 25


# --- the state over a boundary ---


@dataclass
class Encoded:
    frames: np.ndarray
    frames_len: np.ndarray
    lengths: np.ndarray


class FramesBySample:
    """A decoder whose sample n + 1 stands for frame n: windows of samples are those of frames, without an encoder."""

    def __init__(self, nets: Nets, frames: np.ndarray) -> None:
        self._frames = frames
        self._host = HostSearch(counting(nets), nets.dims, nets.settings, "float32")
        self._device = DeviceSearch(counting(nets), nets.dims, "float32", 3)

    def n_frames(self, n_samples: int) -> int:
        return n_samples

    def encode(self, recordings: Sequence[np.ndarray]) -> Encoded:
        rows = recordings[0].astype(np.int64) - 1
        return self.truncate(Encoded(self._frames[rows][None], np.empty(0), np.empty(0)), np.array([len(rows)]))

    def truncate(self, encoded: Encoded, lengths: np.ndarray) -> Encoded:
        return Encoded(encoded.frames, lengths, lengths)

    def start(self, batch: int, device_steps: int | None) -> SearchState:
        return self._host.start(batch) if device_steps is None else self._device.start(batch)

    def resume(self, encoded: Encoded, state: SearchState, device_steps: int | None, _: Sequence[Any]) -> Any:
        if device_steps is None:
            return self._host.run(encoded.frames, encoded.lengths, state)
        return self._device.run(encoded.frames, encoded.frames_len, encoded.lengths, state)


@pytest.mark.parametrize("steps", [None, 3])
@given(
    seed=st.integers(0, 2**32),
    n_frames=st.integers(1, 30),
    sizes=st.builds(WindowSizes, st.integers(0, 4), st.integers(1, 6), st.integers(0, 3)),
)
def test_boundaries_do_not_change_the_search(steps: int | None, seed: int, n_frames: int, sizes: WindowSizes) -> None:
    """Where frames are the same in every window, tokens, frames and durations are those of one search over all.

    Durations reach over boundaries (up to 4 frames, in chunks of 1) and up to 3 tokens are found at one frame.
    """
    rng = np.random.default_rng(seed)
    nets = random_nets(rng, (0, 1, 2, 4), max_symbols=3, eagerness=1.0, haste=0.5)
    frames = rng.standard_normal((n_frames, 6)).astype(np.float32)
    decoder: Any = FramesBySample(nets, frames)
    windows = cut_windows([np.arange(1, n_frames + 1, dtype=np.float32)], 1, FRAME_S, sizes)
    found: list[Emission] = []
    ends = []
    for emissions, end in search_windows(decoder, windows, steps, None):
        found += emissions
        ends.append(end)
    assert triples(found) == plain_search(nets, frames)
    assert all(before < after for before, after in pairwise(ends))
    assert ends[-1] == n_frames


# --- the pocket model on recordings with a known text ---


@pytest.fixture(scope="module")
def pocket(parakeet_artifact: Path) -> ParakeetRecognizer:
    return open_recognizer(open_artifact(parakeet_artifact), threads=1)


def speech(name: str) -> np.ndarray:
    samples: np.ndarray = soundfile.read(REFERENCE / f"{name}.wav", dtype="float32")[0]
    return samples


def joined(seed: int, seconds: float, pauses: tuple[float, float], levels_db: float = 0.0) -> tuple[np.ndarray, str]:
    """The references in shuffled orders, each behind a pause of a length between two, and their text."""
    rng = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    texts: list[str] = []
    while sum(map(len, parts)) < seconds * RATE:
        for name in rng.permutation(list(ITEMS)):
            pause = np.zeros(round(rng.uniform(*pauses) * RATE), np.float32)
            parts += [pause, speech(str(name)) * np.float32(10 ** (-rng.uniform(0, levels_db) / 20))]
            texts.append(ITEMS[str(name)]["reference"])
    return np.concatenate(parts), " ".join(texts)


def write(path: Path, samples: np.ndarray) -> Path:
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return path


def recognize(recognizer: ParakeetRecognizer, path: Path, **options: Any) -> Transcript:
    return recognizer.recognize(open_audio(path), ParakeetOptions.parse(options))


def words(result: Transcript) -> list[tuple[str, float, float]]:
    return [(word.text, word.start, word.end) for segment in result.segments for word in segment.words]


@pytest.mark.parametrize(
    ("pauses", "levels_db", "margin"),
    [
        ((0.3, 0.8), 0.0, 0.01),
        ((0.05, 0.15), 0.0, 0.01),
        ((0.3, 0.8), 20.0, 0.01),
        ((0.0, 0.0), 0.0, 0.05),  # the pocket model has not learnt this: two words of five are wrong either way
    ],
    ids=["pauses", "short pauses", "levels", "no pauses"],
)
def test_the_text_is_that_of_full_attention(
    pocket: ParakeetRecognizer, tmp_path: Path, pauses: tuple[float, float], levels_db: float, margin: float
) -> None:
    samples, text = joined(0, 120, pauses, levels_db)
    path = write(tmp_path / "long.wav", samples)
    full = recognize(pocket, path, attention="full", full_attention_s=1000)
    windows = recognize(pocket, path)
    assert windows.counts["calls"] > 2 * 4  # frontend and encoder of each window
    assert jiwer.wer(text, windows.text) <= jiwer.wer(text, full.text) + margin
    device = recognize(pocket, path, decode="device")
    assert (device.text, words(device)) == (windows.text, words(windows))


def test_no_word_is_lost_or_doubled_at_any_seam(pocket: ParakeetRecognizer, tmp_path: Path) -> None:
    """Short chunks at 10 offsets: 100 boundaries all over the text, 60 s of 23 sentences.

    The offsets are whole frames: between them the pocket model mishears a word now and then, in full attention too.
    """
    samples, text = joined(1, 60, (0.2, 0.6))
    for offset in range(10):
        path = write(tmp_path / "long.wav", np.concatenate([np.zeros(5 * offset * FRAME, np.float32), samples]))
        found = recognize(pocket, path, attention="windows", chunk_s=8, left_s=8)
        assert found.text.split() == text.split(), offset


def test_times_are_those_of_full_attention(pocket: ParakeetRecognizer, tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", joined(1, 60, (0.2, 0.6))[0])
    full = recognize(pocket, path, attention="full")
    found = recognize(pocket, path, attention="windows", chunk_s=8, left_s=8)
    assert [word[0] for word in words(found)] == [word[0] for word in words(full)]
    away = np.abs(np.array([w[1:] for w in words(found)]) - np.array([w[1:] for w in words(full)]))
    assert np.quantile(away, 0.9) <= FRAME_S + 1e-6
    assert away.max() <= 0.4
    assert all(a[2] <= b[1] + 1e-6 for a, b in pairwise(words(found)))


@pytest.mark.parametrize("shift", [-6, 6])
def test_faults_at_boundaries_are_found(pocket: ParakeetRecognizer, shift: int) -> None:
    """The tests above see it where windows search half a second twice, or leave it out."""
    samples, text = joined(1, 60, (0.2, 0.6))
    windows = list(cut_windows([samples], FRAME, FRAME_S, WindowSizes.from_seconds(8, 8, 2, FRAME_S)))
    moved = [windows[0]]
    for window in windows[1:]:
        kept = None if window.kept is None else window.kept - shift
        moved.append(replace(window, skipped=window.skipped + shift, kept=kept))

    def text_of(parts: Sequence[Window]) -> list[str]:
        found = search_windows(pocket.model, parts, None, None)
        return pocket.tokenizer.decode([e.token for emissions, _ in found for e in emissions]).split()

    assert text_of(windows) == text.split()
    assert text_of(moved) != text.split()


def test_short_recordings_and_rests(pocket: ParakeetRecognizer, tmp_path: Path) -> None:
    """Windows give what full attention gives where one is enough, and end well where a rest is shorter than a frame."""
    whole = recognize(pocket, REFERENCE / "t4.wav")
    windows = recognize(pocket, REFERENCE / "t4.wav", attention="windows")
    assert (windows.text, windows.segments) == (whole.text, whole.segments)
    sizes: dict[str, Any] = {"attention": "windows", "chunk_s": 1, "left_s": 2, "right_s": 0}
    for n_samples in (1, 159, 160, 319, FRAME, RATE, RATE + 1, RATE + 159, RATE + 161, 2 * RATE):
        path = write(tmp_path / f"{n_samples}.wav", speech("t4")[:n_samples])
        assert recognize(pocket, path, **sizes).audio.duration_s == n_samples / RATE


def test_a_clip(pocket: ParakeetRecognizer, tmp_path: Path) -> None:
    samples, _ = joined(2, 60, (0.5, 0.8))
    path = write(tmp_path / "long.wav", samples)
    part = write(tmp_path / "part.wav", samples[20 * RATE : 50 * RATE])
    options = {"attention": "windows", "chunk_s": 8}
    clipped = recognize(pocket, path, clip=(20, 50), **options)
    alone = recognize(pocket, part, **options)
    assert clipped.text == alone.text
    assert words(clipped) == [(w, pytest.approx(a + 20), pytest.approx(b + 20)) for w, a, b in words(alone)]
    assert recognize(pocket, path, clip=(20, 50), full_attention_s=30).text  # the clip counts, not the file


def test_progress_and_timings(pocket: ParakeetRecognizer, tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", joined(2, 60, (0.5, 0.8))[0])
    audio, told = open_audio(path), []
    options = ParakeetOptions.parse({"attention": "windows", "chunk_s": 8})
    result = pocket.recognize(audio, options, lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {audio.info.duration_s}
    done = [done_s for done_s, _ in told]
    assert len(done) >= audio.info.duration_s / 8
    assert done == sorted(set(done))
    assert done[-1] == audio.info.duration_s
    assert set(result.timings) >= {"frontend_s", "encoder_s", "decode_s", "total_s", "rtf"}
    assert result.timings["rtf"] == pytest.approx(result.timings["total_s"] / audio.info.duration_s)


def test_long_and_short_ones_in_a_batch(pocket: ParakeetRecognizer, tmp_path: Path) -> None:
    paths = [REFERENCE / "t1.wav", write(tmp_path / "long.wav", joined(2, 30, (0.5, 0.8))[0]), REFERENCE / "t4.wav"]
    options = ParakeetOptions.parse({"full_attention_s": 10, "chunk_s": 8})
    together = pocket.recognize_batch([open_audio(path) for path in paths], options)
    alone = [pocket.recognize(open_audio(path), options) for path in paths]
    assert [(result.text, words(result)) for result in together] == [(result.text, words(result)) for result in alone]


# --- the limit ---


def test_full_attention_has_a_limit(pocket: ParakeetRecognizer, tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", np.zeros(12 * RATE, np.float32))
    with pytest.raises(InputError) as error:
        recognize(pocket, path, attention="full", full_attention_s=10)
    assert re.fullmatch(
        r".*long.wav: expected at most 10 s for full attention, found 12.0 s, which take about 0.0 GiB beside the "
        r"weights; use --attention windows, or a higher --full-attention-limit",
        str(error.value),
    )
    recognize(pocket, path, attention="full", full_attention_s=12)


@pytest.mark.parametrize(
    ("option", "value"),
    [("attention", "half"), ("chunk_s", 0.5), ("left_s", -1), ("right_s", float("nan")), ("full_attention_s", 0)],
)
def test_options_that_are_refused(option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"option {option}"):
        ParakeetOptions.parse({option: value})


def test_doctor_names_the_limit(parakeet_artifact: Path) -> None:
    diagnosis = diagnose(["cpu"], [parakeet_artifact])
    (line,) = [str(finding) for finding in diagnosis.findings if "full attention" in finding.found]
    match = re.search(r"full attention up to 120 s, which takes about ([\d.]+) MiB beside the weights; longer", line)
    assert match
    # Measured: 340 MB (ONNX Runtime), 197 MB (TorchScript).
    assert 197e6 < float(match[1]) * 2**20 < 1.3 * 340e6
    assert diagnosis.fit


# --- memory ---

PEAK = """
import json, sys
from pathlib import Path
from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.families import family_of, open_recognizer
from verify.environment import peak_resident_bytes
artifact = open_artifact(Path(sys.argv[1]))
options = family_of(artifact).options.parse(json.loads(sys.argv[3]))
recognizer = open_recognizer(artifact, threads=1)
before = peak_resident_bytes()
result = recognizer.recognize(open_audio(sys.argv[2]), options)
peak = peak_resident_bytes()
tokens = sum(len(segment.tokens) for segment in result.segments)
print(json.dumps({"peak": peak, "taken": peak - before, "tokens": tokens, "end": result.segments[-1].end}))
"""


def peak(artifact: Path, recording: Path, **options: Any) -> dict[str, float]:
    command = [sys.executable, "-c", PEAK, str(artifact), str(recording), json.dumps(options)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def write_recording(path: Path, minutes: int) -> Path:
    minute = joined(0, 60, (0.3, 0.8))[0][: 60 * RATE]
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for index in range(minutes):
            file.write(np.roll(minute, index * 1000))  # no two minutes are equal
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_hours_need_little_more_than_five_minutes(parakeet_artifact: Path, tmp_path: Path) -> None:
    """What grows is the result: some 0.9 kB a token."""
    short = peak(parakeet_artifact, write_recording(tmp_path / "minutes.wav", 5))
    long = peak(parakeet_artifact, write_recording(tmp_path / "hours.wav", 180))
    assert long["tokens"] > 30 * short["tokens"] > 30 * 500
    assert long["end"] > 10_750
    assert long["peak"] - short["peak"] < 24e6 + 1500 * long["tokens"], (short, long)


@pytest.mark.slow
def test_full_attention_takes_what_doctor_says(parakeet_artifact: Path, tmp_path: Path) -> None:
    path = write_recording(tmp_path / "four.wav", 4)
    recognizer = open_recognizer(open_artifact(parakeet_artifact), threads=1)
    expected = recognizer.model.encoder_bytes(240)
    taken = peak(parakeet_artifact, path, attention="full", full_attention_s=240)["taken"]
    # Doctor promises an upper bound; how far ONNX Runtime stays below depends on what its arena held before.
    assert 0.5 * expected < taken < 1.1 * expected
