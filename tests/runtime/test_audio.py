from __future__ import annotations

import io
import os
import struct
import tracemalloc
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.audio import open_audio, recording
from runtime.errors import ExitCode, InputError

RATE = 16000
SAMPLES = Path(__file__).parents[2] / "samples"
KINDS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_24"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def noise(frames: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((frames, channels)) * 0.1).clip(-0.9, 0.9)


def encoded(data: np.ndarray, rate: int, kind: str = "wav") -> bytes:
    container, subtype = KINDS[kind]
    buffer = io.BytesIO()
    soundfile.write(buffer, data, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def read(path: Path, rate: int = RATE, *clip: float | None) -> np.ndarray:
    blocks = list(open_audio(path).blocks(rate, *clip))
    assert all(block.dtype == np.float32 and block.ndim == 1 and len(block) for block in blocks)
    return np.concatenate(blocks)


def refused(path: Path, *words: str) -> str:
    """Open and read; a refusal is one line that names the file and what is accepted."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_INPUT == 2
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "expected a recording" in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_formats_against_soundfile(tmp_path: Path, kind: str, channels: int):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encoded(noise(23 * 48000, channels), 48000, kind))
    whole, rate = soundfile.read(path, dtype="float32", always_2d=True)
    info = open_audio(path).info
    assert (info.path, info.sample_rate, info.duration_s) == (str(path), 48000, 23.0)
    np.testing.assert_allclose(read(path, 48000), whole.mean(axis=1), atol=1e-6)
    # One-shot soxr on the whole file: blocks change nothing.
    np.testing.assert_allclose(read(path), soxr.resample(whole.mean(axis=1), rate, RATE), atol=1e-6)


def test_real_speech_of_another_rate():
    whole, rate = soundfile.read(SAMPLES / "jfk.flac", dtype="float32", always_2d=True)
    assert (rate, whole.shape[1]) != (RATE, 1)
    np.testing.assert_array_equal(read(SAMPLES / "jfk.flac"), soxr.resample(whole.mean(axis=1), rate, RATE))


def test_against_the_standard_librarys_reader():
    with wave.open(str(SAMPLES / "long_en.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        expected = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
    np.testing.assert_array_equal(read(SAMPLES / "long_en.wav"), expected.astype(np.float32))


def test_blocks_are_ten_seconds_and_can_be_read_again(tmp_path: Path):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(noise(RATE * 25), RATE))
    recording = open_audio(path)
    lengths = [len(block) for block in recording.blocks(RATE)]
    assert lengths == [len(block) for block in recording.blocks(RATE)] == [160000, 160000, 80000]


@pytest.mark.parametrize("channels", [32, 1024])
def test_many_channels_are_read_in_small_blocks(tmp_path: Path, channels: int):
    data = noise(20 * 1000, channels)
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(data, 1000))
    blocks = list(open_audio(path).blocks(1000))
    assert max(map(len, blocks)) * channels <= 2**22
    np.testing.assert_allclose(np.concatenate(blocks), data.mean(axis=1), atol=2**-15)


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str):
    path = tmp_path / f"a.{kind}"
    peaks = []
    for minutes in (2, 12):
        with soundfile.SoundFile(path, "w", 22050, 2, "PCM_16") as file:
            for _ in range(minutes * 6):
                file.write(noise(220_500, 2))
        tracemalloc.start()
        try:
            assert sum(map(len, open_audio(path).blocks(RATE))) == minutes * 60 * RATE
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 16 * 2**20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [(0.0, 0.5), (0.25, None), (11.9, 12.0), (0.001, 99.0)])
def test_clips(tmp_path: Path, kind: str, clip: tuple[float, float | None]):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encoded(noise(12 * RATE), RATE, kind))
    whole = read(path)
    stop = len(whole) if clip[1] is None else round(clip[1] * RATE)
    np.testing.assert_allclose(read(path, RATE, *clip), whole[round(clip[0] * RATE) : stop], atol=1e-6)


@pytest.mark.parametrize(
    "clip", [(2.0, None), (-1.0, None), (float("nan"), None), (0.5, 0.5), (0.5, 0.2), (0.5, float("nan"))]
)
def test_clips_outside_are_refused(tmp_path: Path, clip: tuple[float, float | None]):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(noise(RATE), RATE))
    with pytest.raises(InputError, match=r"a\.wav: expected (a start within its 1\.00 s|an end after the start)"):
        read(path, RATE, *clip)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rate=st.sampled_from([1000, 8000, 11025, 16000, 22050, 44100, 48000, 96000, 384000, 768000])
    | st.integers(1000, 50000),
    channels=st.integers(1, 9),
    seconds=st.floats(0.002, 0.5),
    block_s=st.floats(0.001, 0.3),
    subtype=st.sampled_from(["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]),
    target=st.sampled_from([16000, 16000, 32000, 8000]),
)
def test_any_rate_channels_length_and_block(
    tmp_path: Path, *, rate: int, channels: int, seconds: float, block_s: float, subtype: str, target: int
):
    data = noise(max(1, round(seconds * rate)), channels)
    path = tmp_path / "a.wav"
    soundfile.write(path, data, rate, subtype=subtype)
    mono = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "BLOCK_S", block_s)
        found = read(path, target)
    expected = mono if rate == target else soxr.resample(mono, rate, target)
    assert len(found) == len(expected) == int(len(mono) * target / rate + 0.5)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from(
        [b"", b"RIFF", b"ID3", b"\xff\xfb\x94\x64", b"OggS\0\2", b"fLaC\0\0\0\x22", b"FORM", b".snd", b"RF64"]
    ),
    rest=st.binary(max_size=2000),
    name=st.sampled_from(["a.wav", "a.mp3", "a.flac", "a.ogg", "a.raw", "a.vox", "a"]),
)
def test_any_bytes_are_samples_or_one_line(tmp_path: Path, start: bytes, rest: bytes, name: str):
    path = tmp_path / name
    path.write_bytes(start + rest)
    samples_or_one_line(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)))
def test_changed_bytes_are_samples_or_one_line(tmp_path: Path, data: st.DataObject, kind: str):
    changed = bytearray(encoded(noise(3000, 2), 48000, kind))
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(changed) - 1) | st.integers(0, 60), st.integers(0, 255)))
    ):
        changed[at] = value
    path = tmp_path / f"a.{kind}"
    path.write_bytes(changed[: data.draw(st.integers(1, len(changed)))])
    samples_or_one_line(path)


def samples_or_one_line(path: Path) -> None:
    try:
        found = read(path)
    except InputError as error:
        message = str(error)
        assert message.startswith(f"{path}: expected a ")
        assert message.isprintable()
        return
    assert np.isfinite(found).all()


WAV = encoded(noise(1000, 2), RATE)


def with_field(at: int, kind: str, value: int) -> bytes:
    return WAV[:at] + struct.pack(kind, value) + WAV[at + struct.calcsize(kind) :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"hello, this is not audio\n" * 50, "Format not recognised"),
        (WAV[:44], "truncated"),
        (WAV[:40] + b"\0\0\0\0", "no samples"),
        (with_field(24, "<I", 1), "1 Hz"),
        (with_field(24, "<I", 999), "999 Hz"),
        (with_field(24, "<I", 768_001), "768001 Hz"),
        (with_field(24, "<I", 0), "damaged"),
        (with_field(22, "<H", 0), "channel"),
        (with_field(22, "<H", 1025), "channel"),
        (WAV[:-1], "truncated"),
        (WAV[:2000], "truncated"),
    ],
)
def test_bad_wav(tmp_path: Path, data: bytes, reason: str):
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    refused(path, reason)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0.999, 0.5, 0.2])
def test_truncated(tmp_path: Path, kind: str, keep: float):
    data = encoded(noise(3 * 48000), 48000, kind)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(data[: int(len(data) * keep)])
    refused(path, "truncated")


def mp3(frames: int, mode: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(frames), 48000, format="MP3", bitrate_mode=mode, compression_level=0.5)
    return buffer.getvalue()


def without_xing(data: bytes) -> bytes:
    assert b"Xing" in data or b"Info" in data
    return data.replace(b"Xing", b"gniX").replace(b"Info", b"ofnI")


def test_an_mp3_of_constant_rate_without_its_frame_count(tmp_path: Path):
    """libsndfile guesses the number of frames by the file's size; the encoder adds up to some frames of 1152."""
    path = tmp_path / "a.mp3"
    for data in (without_xing(mp3(3 * 48000, "CONSTANT")), without_xing(mp3(3 * 48000, "CONSTANT"))[:-20_000]):
        path.write_bytes(data)
        recording = open_audio(path)
        assert sum(map(len, recording.blocks(48000))) == recording.frames
    path.write_bytes(without_xing(mp3(3 * 48000, "CONSTANT")))
    assert 0 <= open_audio(path).frames - 3 * 48000 < 4 * 1152


def test_an_mp3_of_changing_rate_without_its_frame_count(tmp_path: Path):
    """libsndfile's guess is too low and the rest would be lost without a word."""
    path = tmp_path / "a.mp3"
    path.write_bytes(without_xing(mp3(10 * 48000, "VARIABLE")))
    with soundfile.SoundFile(path) as file:
        assert file.frames < 9 * 48000
    assert 0 <= open_audio(path).frames - 10 * 48000 < 4 * 1152
    assert len(read(path, 48000)) == open_audio(path).frames


def test_an_mp3_with_a_long_tag(tmp_path: Path):
    path = tmp_path / "a.mp3"
    path.write_bytes(b"ID3\4\0\0" + bytes([0, 0, 0x40, 0]) + bytes(0x2000) + encoded(noise(3 * 48000), 48000, "mp3"))
    assert open_audio(path).frames == 3 * 48000


def test_a_flac_without_its_frame_count(tmp_path: Path):
    """What `ffmpeg -f flac -` writes: 0 in the 36 bits of STREAMINFO's total samples."""
    data = bytearray(encoded(noise(48000), 48000, "flac"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path = tmp_path / "a.flac"
    path.write_bytes(data)
    assert open_audio(path).info.duration_s == 1.0
    np.testing.assert_allclose(read(path, 48000), noise(48000)[:, 0], atol=2**-23)


@pytest.mark.parametrize("size", [2**32 - 1, 2**31 - 1, 0x7FFFF000])
def test_a_streamed_wav_is_no_truncated_one(tmp_path: Path, size: int):
    path = tmp_path / "a.wav"
    path.write_bytes(with_field(40, "<I", size))
    assert len(read(path)) == 1000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, 1e20])
@pytest.mark.parametrize("at", [0, 500_000])
def test_samples_that_are_not_finite(tmp_path: Path, value: float, at: int):
    data = noise(600_000, 2)
    data[at, 1] = value
    path = tmp_path / "a.wav"
    soundfile.write(path, data, RATE, subtype="DOUBLE")
    refused(path, "not finite")


def test_integer_samples_in_floats_are_read(tmp_path: Path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(100) * 2.0**31, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read(path), noise(100)[:, 0], rtol=1e-6)


def test_one_frame(tmp_path: Path):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(noise(1), RATE))
    assert len(read(path)) == 1
    path.write_bytes(encoded(noise(1), 48000))
    refused(path, "less than one sample at 16000 Hz")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: None, "no such file"),
        (lambda path: path.mkdir(), "a folder"),
        (os.mkfifo, "not a file"),
        (lambda path: path.symlink_to(path), ""),
        (lambda path: path.symlink_to("/dev/zero"), "not a file"),
    ],
)
def test_not_a_file(tmp_path: Path, make: Callable[[Path], None], reason: str):
    make(tmp_path / "a.wav")
    refused(tmp_path / "a.wav", reason)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_impossible_names(name: str):
    with pytest.raises(InputError, match="expected a recording"):
        open_audio(Path(name))


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path):
    path = tmp_path / "a.wav"
    path.write_bytes(WAV)
    recording = open_audio(path)
    path.write_bytes(WAV[:400])
    with pytest.raises(InputError, match="truncated"):
        list(recording.blocks(RATE))
