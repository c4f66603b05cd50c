"""Recordings that are no files: bytes, file objects, pipes, arrays; and floats at the scale of integers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import encoded, speech_like

import atlasport
from runtime.audio import open_audio, source
from runtime.errors import InputError

RATE = 16000
SAMPLES = speech_like(2.5, RATE, channels=2)


def samples(recording: object, **options: object) -> np.ndarray:
    return np.concatenate(list(atlasport.open_audio(recording, **options).blocks(RATE)))


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "opus", "mp3"])
def test_bytes_file_objects_and_pipes_are_what_the_file_is(tmp_path: Path, kind: str):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encoded(SAMPLES, RATE, kind))
    expected = samples(path)
    assert len(expected) == 2.5 * RATE
    data = path.read_bytes()
    np.testing.assert_array_equal(samples(str(path)), expected)
    for held in (data, bytearray(data), memoryview(data), io.BytesIO(data)):
        np.testing.assert_array_equal(samples(held), expected)
    with path.open("rb") as file:
        found = open_audio(file)
    np.testing.assert_array_equal(np.concatenate(list(found.blocks(RATE))), expected)
    assert found.info.path == str(path)
    into, out = os.pipe()
    with os.fdopen(into, "rb") as pipe:
        threading.Thread(target=lambda: (os.write(out, data[:1000]), os.write(out, data[1000:]), os.close(out))).start()
        found = open_audio(pipe, name="a pipe")
    assert found.info.path == "a pipe"
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(found.blocks(RATE))), expected)


def test_a_recording_without_a_file_may_be_read_by_several_readers():
    found = open_audio(io.BytesIO(encoded(SAMPLES, RATE, "flac")))
    first, second = found.blocks(RATE), found.blocks(RATE)
    np.testing.assert_array_equal(next(first), next(second))


def test_a_stream_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    code = (
        "import os, sys; from runtime.audio import open_audio\n"
        "a = open_audio(sys.stdin.buffer); print(a.info.duration_s, flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, input=encoded(SAMPLES, RATE, "wav"), capture_output=True, check=False)
    assert process.stdout == b"2.5\n"
    assert list(tmp_path.iterdir()) == []


def test_a_stream_without_end_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(source, "MAX_SPOOLED", 2**22)
    with Path("/dev/zero").open("rb") as endless, pytest.raises(InputError, match=r"/dev/zero: expected at most .*GiB"):
        open_audio(endless)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (io.StringIO("text"), "binary file object"),
        (b"", "an empty file"),
        (io.BytesIO(), "an empty file"),
        (b"hello", "Format not recognised|Invalid data"),
        (17, "expected a path, bytes, a binary file object or an array"),
        (None, "expected a path"),
    ],
)
def test_what_is_no_recording(wrong: object, said: str):
    with pytest.raises(InputError, match=said):
        open_audio(wrong)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8", "uint16", "float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("channels", [None, 1, 2, 6])
def test_arrays(dtype: str, channels: int | None):
    data = speech_like(1, RATE, channels=channels or 1) / 2
    kind, bits = np.dtype(dtype).kind, 8 * np.dtype(dtype).itemsize
    step = {"f": 2.0**-10}.get(kind, 2.0 ** (1 - bits))
    given = data if kind == "f" else np.round(data / step) + (2 ** (bits - 1) if kind == "u" else 0)
    given = given.astype(dtype) if channels else given[:, 0].astype(dtype)
    found = samples(given, rate=RATE)
    np.testing.assert_allclose(found, data.mean(axis=1), atol=step + 2**-24)
    found = open_audio(given, rate=8000)
    assert (found.info.path, found.info.sample_rate, found.info.duration_s) == ("<array>", 8000, 2.0)
    assert len(np.concatenate(list(found.blocks(RATE, 0.5, 1.0)))) == RATE // 2


def test_a_torch_tensor():
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(samples(torch.tensor([0.5, -0.5] * 100), rate=RATE), np.array([0.5, -0.5] * 100))


@pytest.mark.parametrize(
    ("array", "rate", "said"),
    [
        (np.zeros(10), None, "rate: expected the samples per second"),
        (np.zeros(10), 16000.5, "rate: expected"),
        (np.zeros(10), 10, "10 Hz"),
        (np.zeros((2, 16000)), RATE, "transpose"),
        (np.zeros((2, 3, 4)), RATE, r"\[2, 3, 4\]"),
        (np.zeros(0), RATE, r"\[0\]"),
        (np.array(0.5), RATE, r"\[\]"),
        (np.zeros(10, np.int64), RATE, "int64"),
        (np.zeros(10, bool), RATE, "bool"),
        (np.zeros(10, complex), RATE, "complex"),
        (np.array(["a"]), RATE, "<U1"),
        (np.array([0.0, np.nan]), RATE, "not finite"),
        (np.array([0.0, -np.inf], np.float32), RATE, "not finite"),
        (np.array([0.0, 1e300]), RATE, "not finite"),
    ],
)
def test_arrays_that_are_no_samples(array: np.ndarray, rate: int | None, said: str):
    with pytest.raises(InputError, match=said):
        open_audio(array, rate=rate)


@pytest.mark.parametrize("full", [2.0**15, 2.0**23, 2.0**31])
@pytest.mark.parametrize("kind", ["array", "FLOAT", "DOUBLE"])
def test_floats_at_the_scale_of_integers_are_scaled_and_said(full: float, kind: str):
    data = SAMPLES.clip(-0.999, 0.999) * full
    given = data if kind == "array" else encoded(data, RATE, "wav", kind)
    found = open_audio(given, rate=RATE)
    np.testing.assert_allclose(np.concatenate(list(found.blocks(RATE))), (data / full).mean(axis=1), atol=1e-6)
    assert f"divided by {full:.0f}" in found.info.remark


def test_loud_floats_stay_as_they_are():
    found = open_audio(SAMPLES.astype(np.float32) * 4, rate=RATE)
    assert found.info.remark == ""
    assert np.abs(np.concatenate(list(found.blocks(RATE)))).max() > 1


def test_a_few_samples_far_outside_are_refused():
    data = SAMPLES.copy()
    data[100] = 30000
    with pytest.raises(InputError, match="largest at 30000"):
        open_audio(data, rate=RATE)


def test_memory_does_not_grow_with_a_stream(tmp_path: Path):
    """Peak of a process that reads 40 MB and one that reads 160 MB from a pipe."""
    code = (
        "import resource, sys; from runtime.audio import open_audio\n"
        "n = sum(map(len, open_audio(sys.stdin.buffer).blocks(16000)))\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for minutes in (20, 80):
        path = tmp_path / "a.wav"
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
            for _ in range(minutes):
                file.write(np.zeros(60 * RATE, np.int16))
        with path.open("rb") as file:
            process = subprocess.run([sys.executable, "-c", code], stdin=file, capture_output=True, check=True)
        frames, peak = map(int, process.stdout.split())
        assert frames == minutes * 60 * RATE
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 20 * 1024
