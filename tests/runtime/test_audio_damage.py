"""Damage is never a silent loss: a file is read whole, refused with seconds, or read with a remark."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import encoded, ogg_pages, speech_like
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.audio import Audio, open_audio
from runtime.errors import InputError

RATE = 16000
SECONDS = 3.0
SAMPLES = speech_like(SECONDS, RATE)
FILES = {kind: encoded(SAMPLES, RATE, kind) for kind in ("wav", "flac", "ogg", "opus", "mp3", "aiff", "au", "rf64")}
SECONDS_SAID = re.compile(r"(\d+\.\d\d) s found, (?:about (\d+\.\d\d) s are|an unknown time is) missing")


def length(found: Audio) -> float:
    return sum(map(len, found.blocks(RATE))) / RATE


def whole_or_said(data: bytes) -> None:
    """Open and read; what is read without a remark is all of it."""
    try:
        found = open_audio(data)
        seconds = length(found)
    except InputError:
        return
    assert abs(seconds - SECONDS) < 0.001 or found.info.remark


def refused(data: bytes) -> tuple[float, float | None]:
    with pytest.raises(InputError, match="damaged or truncated") as caught:
        length(open_audio(data))
    assert "--accept-damaged" in str(caught.value)
    said = SECONDS_SAID.search(str(caught.value))
    assert said, str(caught.value)
    return float(said[1]), said[2] and float(said[2])


@settings(max_examples=150)
@given(kind=st.sampled_from(sorted(FILES)), cut=st.floats(0, 0.9999))
def test_cut_at_any_byte(kind: str, cut: float):
    whole_or_said(FILES[kind][: int(cut * len(FILES[kind]))])


@settings(max_examples=150)
@given(
    kind=st.sampled_from(["flac", "ogg", "opus", "mp3"]),
    at=st.floats(0, 1),
    size=st.integers(1, 6000),
    how=st.sampled_from(["zeros", "noise", "gone"]),
)
def test_any_stretch_zeroed_changed_or_gone(kind: str, at: float, size: int, how: str):
    data = bytearray(FILES[kind])
    start = int(at * (len(data) - 1))
    stop = min(len(data), start + size)
    instead = {"zeros": bytes(stop - start), "noise": np.random.default_rng(size).bytes(stop - start), "gone": b""}[how]
    data[start:stop] = instead
    if kind == "mp3" and start < 300:
        return  # without its count, an mp3 that was cut in front is a stream that was joined in the middle
    whole_or_said(bytes(data))


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "aiff", "au", "rf64"])
def test_the_seconds_found_and_missing(kind: str):
    found, missing = refused(FILES[kind][: len(FILES[kind]) // 2])
    assert missing is not None
    assert found == pytest.approx(SECONDS / 2, abs=0.26)  # a frame of flac
    assert missing == pytest.approx(SECONDS - found, abs=0.2)


@pytest.mark.parametrize("kind", ["flac", "mp3", "ogg", "opus"])
def test_the_middle_zeroed(kind: str):
    data = bytearray(encoded(speech_like(16, RATE), RATE, kind))
    middle, size = len(data) // 2, len(data) // 50
    data[middle : middle + size] = bytes(size)
    found, missing = refused(bytes(data))
    assert found + (missing or 16 - found) == pytest.approx(16, abs=0.2)
    accepted = open_audio(bytes(data), accept_damaged=True)
    said = SECONDS_SAID.search(accepted.info.remark)
    assert said
    assert 0.05 < float(said[2]) < 3  # a page may hold a second
    assert length(accepted) == pytest.approx(accepted.info.duration_s, abs=1e-3)
    assert length(accepted) > 12  # also what lies behind the damage


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_an_ogg_page_of_another_checksum(kind: str):
    pages = ogg_pages(encoded(speech_like(9, 48000), 48000, kind))
    pages[5] = pages[5][:-3] + bytes([pages[5][-3] ^ 1]) + pages[5][-2:]
    found, missing = refused(b"".join(pages))
    assert missing is not None
    assert found + missing == pytest.approx(9, abs=0.1)
    accepted = open_audio(b"".join(pages), accept_damaged=True)
    assert 0.2 < 9 - accepted.info.duration_s + 0.001 < 2.1 or "missing" in accepted.info.remark


def test_an_mp3_with_more_frames_than_its_count():
    data = FILES["mp3"]
    at = data.index(b"Xing" if b"Xing" in data else b"Info") + 8
    count = int.from_bytes(data[at : at + 4], "big")
    stale = data[:at] + (count // 2).to_bytes(4, "big") + data[at + 4 :]
    with soundfile.SoundFile(io.BytesIO(stale)) as file:
        assert file.frames < 0.6 * SECONDS * RATE  # libsndfile stops there
    assert length(open_audio(stale)) == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize(
    "junk", [b"\0" * 3000, b"HTTP/1.0 200 OK\r\nicy-name: x\r\n\r\n", np.random.default_rng(5).bytes(2500)]
)
def test_an_mp3_behind_other_bytes(junk: bytes):
    found = open_audio(junk + FILES["mp3"])
    assert length(found) == pytest.approx(SECONDS, abs=0.001)
    assert f"{len(junk)} bytes" in found.info.remark


def test_an_mp3_without_a_count_that_ends_within_a_frame_says_so():
    data = FILES["mp3"].replace(b"Xing", b"gniX").replace(b"Info", b"ofnI")
    assert "within a frame" in open_audio(data[: len(data) * 2 // 3]).info.remark


@pytest.mark.parametrize("kind", ["flac", "wav", "ogg", "opus", "mp3"])
def test_tags_in_front_and_behind(kind: str):
    id3 = b"ID3\4\0\0" + bytes([0, 0, 3, 0]) + b"x" * 384
    found = open_audio(id3 + FILES[kind] + b"TAG" + bytes(125))
    assert (length(found), found.info.remark) == (SECONDS, "")


def test_a_streamed_flac_with_a_tag_behind():
    data = bytearray(FILES["flac"])
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    assert length(open_audio(bytes(data) + b"TAG" + bytes(125))) == SECONDS


def read_forward(data: bytes) -> np.ndarray:
    """soundfile's samples without its seeks."""

    class Forward(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    blocks = []
    with Forward(io.BytesIO(data)) as file:
        while len(block := file.read(1000, dtype="float32")):
            blocks.append(block)
    return np.concatenate(blocks)


def wav_with(riff: int | None, data: int | None, behind: bytes = b"") -> bytes:
    whole = bytearray(FILES["wav"])
    assert whole[36:40] == b"data"
    for at, value in ((4, riff), (40, data)):
        if value is not None:
            whole[at : at + 4] = struct.pack("<I", value)
    return bytes(whole) + behind


@pytest.mark.parametrize("riff", [None, 0, 36, 1000, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("data", [0, 32000, 2 * 16000 + 1, 2**32 - 1])
def test_sizes_of_a_wav_that_were_never_filled_in_or_are_stale(riff: int | None, data: int):
    found = open_audio(wav_with(riff, data))
    np.testing.assert_array_equal(
        np.concatenate(list(found.blocks(RATE))), soundfile.read(io.BytesIO(FILES["wav"]), dtype="float32")[0]
    )
    assert bool(found.info.remark) == (data < 2**31)  # what streams write says nothing that could be wrong


@pytest.mark.parametrize(
    "behind", [b"LIST" + struct.pack("<I", 4) + b"INFO", b"LIST" + struct.pack("<I", 400) + b"INFO", b"\0", b"abc"]
)
def test_chunks_behind_the_samples_are_no_samples(behind: bytes):
    found = open_audio(wav_with(None, None, behind))
    assert (found.frames, found.info.remark) == (SECONDS * RATE, "")


def test_a_header_without_samples_and_chunks_behind_it():
    empty = wav_with(None, 0)[:44] + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(InputError, match="no samples"):
        open_audio(empty)


def test_two_wavs_in_one_file_are_refused():
    found, missing = refused(FILES["wav"] * 2)
    assert (found, missing) == (SECONDS, pytest.approx(SECONDS, abs=0.01))


def test_a_wav_beyond_four_gigabytes(tmp_path: Path):
    """Its size field counts modulo 2**32; the file is sparse."""
    path = tmp_path / "a.wav"
    samples = 2**32 + 32000 * 60
    path.write_bytes(wav_with(None, samples % 2**32)[:44])
    os.truncate(path, 44 + samples)
    found = open_audio(path)
    assert found.frames == samples // 2
    assert "60.00 s" in found.info.remark
    assert len(next(found.blocks(RATE, samples / 32000 - 1))) == RATE


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "GSM610"),
        ("AIFF", "GSM610"),
        ("W64", "GSM610"),
        ("AU", "G721_32"),
        ("WAV", "G721_32"),
        ("AU", "G723_24"),
        ("AU", "G723_40"),
        ("WAV", "NMS_ADPCM_16"),
        ("WAV", "NMS_ADPCM_32"),
        ("AIFF", "DWVW_16"),
        ("SDS", "PCM_16"),
        ("SDS", "PCM_24"),
        ("PAF", "PCM_24"),
        ("XI", "DPCM_16"),
        ("XI", "DPCM_8"),
        ("CAF", "ALAC_16"),
        ("WAV", "IMA_ADPCM"),
        ("WAV", "MS_ADPCM"),
    ],
)
@pytest.mark.parametrize("frames", [20001, 16000])
def test_codecs_that_cannot_seek(container: str, subtype: str, frames: int):
    rate = 8000 if subtype.startswith("NMS") else RATE
    data = encoded(speech_like(frames / rate, rate), rate, container, subtype)
    expected = read_forward(data)
    found = open_audio(data)
    assert found.info.remark == ""
    samples = np.concatenate(list(found.blocks(found.info.sample_rate)))
    # SDS ends a frame earlier or later, depending on how much is read at once.
    assert abs(len(samples) - len(expected)) <= (container == "SDS")
    assert len(samples) >= frames - 1
    np.testing.assert_array_equal(samples[: frames - 1], expected[: frames - 1])
    clip = np.concatenate(list(found.blocks(found.info.sample_rate, 0.1, 0.3)))
    tenth = found.info.sample_rate // 10
    np.testing.assert_array_equal(clip, expected[tenth : 3 * tenth])


def test_what_c_libraries_print_does_not_reach_the_terminal():
    data = bytearray(encoded(speech_like(6, RATE), RATE, "mp3"))
    rng = np.random.default_rng(0)
    for at in rng.integers(2000, len(data) - 100, 60):
        data[at : at + 40] = rng.bytes(40)
    with tempfile.NamedTemporaryFile(suffix=".mp3") as file:
        file.write(data)
        file.flush()
        bare = "import soundfile, sys; f = soundfile.SoundFile(sys.argv[1]); print(len(f.read(f.frames)))"
        ours = (
            "import sys, os; from runtime.audio import open_audio\n"
            "a = open_audio(sys.argv[1], accept_damaged=True); print(sum(map(len, a.blocks(16000))))\n"
            "print('from Python', file=sys.stderr)"
        )
        loud, quiet = (
            subprocess.run([sys.executable, "-c", code, file.name], capture_output=True, text=True, check=False)
            for code in (bare, ours)
        )
    assert re.search("mpg123|Illegal|resync", loud.stderr)
    assert (quiet.returncode, quiet.stderr) == (0, "from Python\n")
    assert int(quiet.stdout) > RATE
