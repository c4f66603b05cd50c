"""Reads recordings in blocks: mono, float32, at the model's rate; memory does not grow with the file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from runtime.engines.base import Floats
from runtime.errors import InputError
from runtime.results import AudioInfo

BLOCK_S = 10.0
MIN_RATE, MAX_RATE = 1_000, 768_000
# Integer samples that were written as floats reach 2**31; the square of far larger ones overflows in the mel spectrum.
MAX_AMPLITUDE = 2.0**31
_MAX_VALUES = 2**22  # per read, over all channels: 16 MiB
_UNKNOWN = 2**62  # libsndfile gives 2**63 - 1 frames where a FLAC header does not say
_MP3_TAIL = 4096  # bytes: a frame has at most 2881, an ID3v1 tag 128
_ACCEPTED = "wav, flac, ogg, opus and mp3 are read"
# How libsndfile's log of the header reports a chunk of samples that is longer than the file.
_SHORTER = re.compile(r"^\s*(?:data|SSND|Riff size|riff) : (\d+) \(should be (\d+)\)$", re.MULTILINE)
# Sizes that programs write when they stream and cannot go back to fill in the size: 2**32 - 1, 2**31 - 1, and values
# just below, rounded to whole blocks.
_STREAMED = (range(0x7FFF0000, 0x80000001), range(0xFFFF0000, 0x100000001))


class _Stream(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is read forward.

    soundfile seeks to where it already is after every read of a seekable file. In an mp3 that resets the decoder: the
    samples then depend on where reads end (0.002 apart), and libmpg123 complains on stderr.
    """

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class Audio:
    """A recording whose header was checked. `frames` counts samples per channel at the file's own rate."""

    path: Path
    info: AudioInfo
    frames: int

    def blocks(self, rate: int, start_s: float = 0.0, end_s: float | None = None) -> Iterator[Floats]:
        """Yield the recording as mono float32 blocks of up to about 10 s; each call reads from the start.

        Channels are averaged. n frames at the file's rate r give floor(n * rate / r + 1/2) samples, by soxr's
        high-quality resampler, and do not depend on where blocks end.

        Parameters
        ----------
        rate : int
            Sample rate of the blocks in Hz.
        start_s, end_s : float
            Part of the recording in seconds, rounded to frames; to the end by default.

        Yields
        ------
        Floats
            f32 [n], n >= 1.

        Raises
        ------
        InputError
            The part is empty or starts behind the end, a sample is not finite, or the file is damaged or truncated.

        """
        first, last = self._frames_between(start_s, end_s)
        with _reading(self.path) as file:
            chunks = _mono(self.path, file, first, last - first)
            if rate != file.samplerate:
                chunks = _resampled(chunks, file.samplerate, rate)
            empty = True
            for chunk in chunks:
                if len(chunk):
                    empty = False
                    yield chunk
        if empty:
            raise _refusal(self.path, f"less than one sample at {rate} Hz")

    def _frames_between(self, start_s: float, end_s: float | None) -> tuple[int, int]:
        """Return the first frame and the one after the last."""
        duration = self.info.duration_s
        stop_s = duration if end_s is None else min(end_s, duration)
        if not 0 <= start_s < duration:
            msg = f"{self.path}: expected a start within its {duration:.2f} s, found {start_s} s"
            raise InputError(msg)
        if not start_s < stop_s:
            msg = f"{self.path}: expected an end after the start at {start_s} s, found {end_s} s"
            raise InputError(msg)
        first = min(round(start_s * self.info.sample_rate), self.frames - 1)
        return first, max(first + 1, min(round(stop_s * self.info.sample_rate), self.frames))


class SampleBuffer:
    """A stream of samples, f32 [n] each, of which a stretch is held."""

    def __init__(self, blocks: Iterable[Floats]) -> None:
        self._blocks = iter(blocks)
        self._held: Floats = np.zeros(0, np.float32)
        self._start = 0

    def between(self, start: int, stop: int) -> Floats:
        """Return the samples from `start`, which never falls, to `stop` or the stream's end; drop those before."""
        parts = [self._held[start - self._start :]]
        missing = stop - start - len(parts[0])
        while missing > 0 and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            missing -= len(block)
        self._held = np.concatenate(parts)
        self._start = start
        return self._held[: stop - start]


def open_audio(path: Path | str) -> Audio:
    """Check a recording and return it.

    Any format that libsndfile reads, 1 to 1024 channels, 1 kHz to 768 kHz. An mp3 or a streamed flac is decoded once
    to count its frames (1 s per 10 min of mp3), since its header need not hold their number.

    Raises
    ------
    InputError
        It is missing, not a file, not readable, empty, not audio, of a rate out of range, has no frames, or is
        shorter than its header promises.

    """
    path = Path(path)
    with _reading(path) as file:
        if not MIN_RATE <= file.samplerate <= MAX_RATE:
            raise _refusal(path, f"a sample rate of {file.samplerate} Hz ({MIN_RATE} to {MAX_RATE} Hz are read)")
        _check_sizes(path, file)
        if file.frames == 0:
            raise _refusal(path, "a header with no samples behind it")
        if _seeks(file):
            frames = file.frames
            _check_complete(path, file)
        else:
            frames = _count_frames(path, file)
        # Results are text; the bytes of a name need not be.
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        info = AudioInfo(shown, frames / file.samplerate, file.samplerate)
    return Audio(path, info, frames)


@contextmanager
def _reading(path: Path) -> Iterator[_Stream]:
    """Open a recording and turn errors into one line."""
    try:
        if not path.exists():
            msg = f"{path}: expected a recording, found no such file"
            raise InputError(msg)
        if not path.is_file():
            raise _refusal(path, "a folder" if path.is_dir() else "something that is not a file")
        if path.stat().st_size == 0:
            raise _refusal(path, "an empty file")
        # By its descriptor: by name, soundfile takes x.raw for headerless samples, and libsndfile x.vox and others.
        with path.open("rb") as raw, _Stream(raw.fileno(), closefd=False) as file:
            yield file
    except soundfile.LibsndfileError as error:
        raise _refusal(path, f"damaged or other content: {error.error_string.rstrip('.')}") from error
    except (OSError, ValueError) as error:
        raise _refusal(path, f"{getattr(error, 'strerror', None) or error}") from error


def _mono(path: Path, file: _Stream, first: int, count: int) -> Iterator[Floats]:
    """Yield `count` frames from `first` on, averaged over channels."""
    block = max(1, min(int(BLOCK_S * file.samplerate), _MAX_VALUES // file.channels))
    if _seeks(file):
        file.seek(first)
    else:
        for at in range(0, first, block):
            file.read(min(block, first - at), dtype="float32")
    left = count
    while left:
        frames = file.read(min(block, left), dtype="float32", always_2d=True)  # [n, channels]
        if not len(frames):
            raise _refusal(path, f"a damaged or truncated file: {left} frames are missing at its end")
        with np.errstate(all="ignore"):
            mono: Floats = frames.mean(axis=1)
        largest = float(np.abs(mono).max())
        if not largest <= MAX_AMPLITUDE:  # so that NaN is refused too
            at = (first + count - left) / file.samplerate
            raise _refusal(path, f"samples that are not finite or out of range (NaN, Inf) after {at:.1f} s")
        left -= len(mono)
        yield mono


def _resampled(chunks: Iterator[Floats], source: int, target: int) -> Iterator[Floats]:
    stream = soxr.ResampleStream(source, target, 1, dtype="float32")
    for chunk in chunks:
        yield stream.resample_chunk(chunk)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _seeks(file: _Stream) -> bool:
    """Tell whether the header holds the number of frames and seeking is exact and silent."""
    return bool(file.format != "MP3" and file.frames < _UNKNOWN)


def _count_frames(path: Path, file: _Stream) -> int:
    """Return the number of frames by decoding the file."""
    count = 0
    # Small reads: libsndfile decodes all that a read asks for, also where it returns less.
    while frames := len(file.read(2**13, dtype="float32", always_2d=True)):
        count += frames
    if not count:
        raise _refusal(path, "a header with no samples behind it")
    if file.format != "MP3":
        return count
    if _has_xing_header(path):
        if count < file.frames:
            raise _refusal(path, f"a truncated file: its header promises {file.frames} frames, {count} are there")
    # Without that header libsndfile guesses the number of frames by the first frames' size, and stops there.
    elif os.lseek(file.name, 0, os.SEEK_CUR) < path.stat().st_size - _MP3_TAIL:
        raise _refusal(path, "an mp3 of changing bit rate without a Xing header; convert it (ffmpeg -i FILE FILE.wav)")
    return count


def _has_xing_header(path: Path) -> bool:
    """Tell whether an mp3's number of frames was read from its first frame; otherwise it was a guess by the size."""
    with path.open("rb") as raw:
        tag = raw.read(10)
        # An ID3v2 tag comes first; its length has seven bits a byte (ID3v2.4, section 3.1).
        length = sum(byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
        raw.seek(len(tag) + length if tag.startswith(b"ID3") else 0)
        start = raw.read(4096)
    return b"Xing" in start or b"Info" in start


def _check_sizes(path: Path, file: _Stream) -> None:
    """Refuse a file with fewer bytes than its header promises."""
    for promised, found in _SHORTER.findall(file.extra_info):
        if int(found) < int(promised) and not any(int(promised) in sizes for sizes in _STREAMED):
            raise _refusal(path, f"a truncated file: its header promises {promised} bytes, {found} are there")


def _check_complete(path: Path, file: _Stream) -> None:
    """Refuse a file whose end is missing."""
    if file.format == "OGG" and not _last_ogg_page_is_whole(path):
        raise _refusal(path, "a truncated file: the page that ends an ogg stream is missing")
    try:
        file.seek(file.frames - 1)
        whole = len(file.read(1)) == 1
    except soundfile.LibsndfileError:
        whole = False
    if not whole:
        raise _refusal(path, f"a damaged or truncated file: the last of {file.frames} promised frames is not there")


def _last_ogg_page_is_whole(path: Path) -> bool:
    """Tell whether the file's last page is complete and marked as the end of its stream (RFC 3533, section 6)."""
    with path.open("rb") as raw:
        raw.seek(max(0, path.stat().st_size - 2**17))  # a page has at most 65307 bytes
        tail = raw.read()
    page = tail[tail.rfind(b"OggS") :]
    header = 27
    if len(page) < header or not page[5] & 4:
        return False
    lacing = page[header : header + page[26]]
    return len(page) >= header + page[26] + sum(lacing)


def _refusal(path: Path, found: str) -> InputError:
    return InputError(f"{path}: expected a recording ({_ACCEPTED}), found {found}")
