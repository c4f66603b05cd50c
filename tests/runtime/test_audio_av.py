"""Formats of the extra `av`; PyAV itself, and soundfile on the samples that were encoded, are the judges."""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from audio_files import encoded, speech_like

from runtime.audio import open_audio
from runtime.errors import InputError

av = pytest.importorskip("av")

RATE = 48000
# Container, encoder, how many seconds an encoder may add at both ends.
FORMATS = {
    "m4a": ("mp4", "aac", 0.06),
    "alac.m4a": ("mp4", "alac", 0.0),
    "aac": ("adts", "aac", 0.06),
    "webm": ("webm", "libopus", 0.03),
    "mka": ("matroska", "flac", 0.0),
    "wma": ("asf", "wmav2", 0.1),
    "ts": ("mpegts", "aac", 0.06),
    "wv": ("wv", "wavpack", 0.0),
}


OGA = ("ogg", "flac")


def made(kind: str, seconds: float = 4.0, channels: int = 1, *, video: bool = False) -> bytes:
    container, codec = OGA if kind == "oga" else FORMATS[kind][:2]
    data = speech_like(seconds, RATE, channels=channels)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=RATE, layout={1: "mono", 2: "stereo", 8: "7.1"}[channels])
        stream.bit_rate = 96_000
        if video:
            picture = out.add_stream("mpeg4", rate=5, width=64, height=64)
            for _ in range(int(5 * (seconds + 2))):
                out.mux(picture.encode(av.VideoFrame(64, 64, "yuv420p")))
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray((data.T * 32767).astype(np.int16).T.reshape(1, -1)), "s16", stream.layout
        )
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        resampler = av.AudioResampler(stream.format, stream.layout, RATE, stream.frame_size or 1024)
        for chunk in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(chunk))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def read(data: bytes, rate: int = RATE, *clip: float | None) -> np.ndarray:
    return np.concatenate(list(open_audio(data).blocks(rate, *clip)))


def by_pyav(data: bytes) -> np.ndarray:
    resampler = av.AudioResampler("flt")
    with av.open(io.BytesIO(data)) as container:
        frames = [one for frame in container.decode(audio=0) for one in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray().reshape(frame.samples, -1).mean(axis=1) for frame in frames])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind: str, channels: int):
    data = made(kind, channels=channels)
    found = open_audio(data)
    assert found.info.sample_rate == RATE
    assert found.info.remark == ""
    assert found.info.duration_s == pytest.approx(4.0, abs=FORMATS[kind][2])
    whole = read(data)
    assert len(whole) == found.frames
    np.testing.assert_allclose(whole, by_pyav(data), atol=2e-5)
    np.testing.assert_allclose(read(data, RATE, 1.0, 2.5), whole[RATE : int(2.5 * RATE)], atol=1e-6)


def test_more_channels_than_ffmpeg_keeps_in_a_frame():
    """PyAV 18 reads past the end of the list of planes where there are eight: a crash."""
    assert read(made("m4a", 1.0, channels=8)).shape == pytest.approx((RATE,), rel=0.1)


@pytest.mark.parametrize("kind", ["m4a", "mka"])
def test_a_film_is_as_long_as_its_sound(kind: str):
    found = open_audio(made(kind, video=True))
    assert found.info.duration_s == pytest.approx(4.0, abs=0.1)
    assert found.info.remark == ""


@pytest.mark.parametrize("how", ["cut", "zeros"])
@pytest.mark.parametrize("kind", ["m4a", "aac", "webm", "wma", "ts", "mka", "wv"])
def test_damage(kind: str, how: str):
    if (kind, how) == ("ts", "cut"):
        pytest.skip("a broadcast has no end")
    data = bytearray(made(kind))
    middle = len(data) // 2
    if how == "cut":
        del data[middle:]
    else:
        data[middle : middle + 4000] = bytes(4000)
    with pytest.raises(InputError, match=r"damaged or"):
        read(bytes(data))
    if (kind, how) == ("m4a", "cut"):
        return  # its table stands at the end
    found = open_audio(bytes(data), accept_damaged=True)
    assert "missing" in found.info.remark
    assert 0 < sum(map(len, found.blocks(RATE))) == found.frames


def test_memory_does_not_grow_with_the_file():
    peaks = []
    for seconds in (5, 25):
        data = made("m4a", seconds)
        tracemalloc.start()
        try:
            assert sum(map(len, open_audio(data).blocks(RATE))) == pytest.approx(seconds * RATE, rel=0.01)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 2**20


def test_flac_in_ogg_in_a_chain():
    """Only PyAV writes it here."""
    first, second = made("oga", 1.5), made("oga", 2.5, channels=2)
    expected = np.concatenate([by_pyav(first), by_pyav(second)])
    np.testing.assert_allclose(read(first + second), expected, atol=1e-6)
    mixed = first + encoded(speech_like(1, RATE), RATE, "opus")
    assert open_audio(mixed).info.duration_s == 2.5


def test_ffmpeg_prints_nothing(tmp_path: Path):
    data = bytearray(made("m4a"))
    data[len(data) // 2 :][:3000] = bytes(3000)
    (tmp_path / "a.m4a").write_bytes(data)
    code = (
        "import sys; from runtime.audio import open_audio\n"
        "print(sum(map(len, open_audio(sys.argv[1], accept_damaged=True).blocks(16000))))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.m4a"], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
