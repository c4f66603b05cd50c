"""Decodes by libsndfile."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import soundfile

from runtime.audio.contents import Damage, is_streamed
from runtime.audio.source import Piece, Pieces, Source
from runtime.engines.base import Floats
from runtime.errors import InputError

_UNKNOWN = 2**62  # libsndfile gives 2**63 - 1 frames where a FLAC header does not say
# Small reads where an error ends one: libsndfile decodes all that a read asks for, also where it returns less.
_SMALL = 2**13
_MAX_VALUES = 2**22  # per read, over all channels: 16 MiB
# Encodings in which every frame can be reached, and exactly, apart from the two containers that pack it otherwise.
_PLAIN = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
_PACKED = ("PAF", "SDS")
_LENGTH = re.compile(r"^Length : (\d+)$", re.MULTILINE)
_PROMISES = {
    "W64": re.compile(r"^ *riff : (\d+)", re.MULTILINE),
    "CAF": re.compile(r"^ *data : (\d+)", re.MULTILINE),
    "VOC": re.compile(r"^ *(?:Extended II|Sound Data) : (\d+)", re.MULTILINE),
}
_NIST_HEADER, _NIST_COUNT = 1024, re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)
_MP3_TAIL = 4096  # bytes: a frame has at most 2881
# How libsndfile's log of the header reports a chunk of samples that is longer than the file.
_SHORTER = re.compile(r"^\s*(?:data|SSND|Data Size) *: *(\d+) \(should be (\d+)\)", re.MULTILINE)


# libsndfile has no words for it.
_UNNAMED = "checksums differ"


class UnknownContentError(Exception):
    """libsndfile cannot read it; the text says why."""


class _Stream(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is read forward.

    soundfile seeks to where it already is after every read of a seekable file. In an mp3 that resets the decoder: the
    samples then depend on where reads end (0.002 apart), and libmpg123 complains on stderr.
    """

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class Part:
    """A stretch that libsndfile reads, of `frames` frames at `rate` Hz; `damage` is what its decoder misses."""

    source: Source
    pieces: tuple[Piece, ...]
    rate: int
    channels: int
    frames: int
    floats: bool
    seeks: bool
    tolerant: bool
    damage: Damage | None = None

    def read(self, first: int, stop: int, block: int) -> Iterator[Floats]:
        """Yield f32 [n, channels] from one frame to another.

        Raises
        ------
        InputError
            The file is damaged or truncated.

        """
        try:
            yield from self._read(first, stop, block)
        except UnknownContentError as error:
            raise InputError(f"{self.source.label}: expected a recording, found a damaged one: {error}") from error

    def _read(self, first: int, stop: int, block: int) -> Iterator[Floats]:
        with _open(self.source, self.pieces) as (file, _):
            block = max(1, min(block, _MAX_VALUES // file.channels))
            if self.tolerant:
                yield from _between(_survivors(file), first, stop)
                return
            if self.seeks:
                file.seek(first)
            else:
                for at in range(0, first, block):
                    with quiet():
                        file.read(min(block, first - at), dtype="float32")
            at = first
            while at < stop:
                try:
                    with quiet():
                        frames: Floats = file.read(min(block, stop - at), dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    raise self._too_short(at, error.error_string.rstrip(".")) from error
                if not len(frames):
                    raise self._too_short(at, "its samples end early")
                at += len(frames)
                yield frames

    def _too_short(self, at: int, what: str) -> InputError:
        # A read that fails has lost up to ten seconds that are there.
        damage = open_part(self.source, self.pieces, decode=True).damage
        damage = damage or Damage(what or _UNNAMED, at / self.rate, (self.frames - at) / self.rate)
        return InputError(f"{self.source.label}: expected a recording, found a {damage.refusal}")


def open_part(source: Source, pieces: Sequence[Piece], *, decode: bool = False, tolerant: bool = False) -> Part:
    """Return a stretch of a file, whose frames are counted by decoding it where its header need not say.

    Parameters
    ----------
    source : Source
        The file.
    pieces : sequence
        Of the file.
    decode : bool
        Decode it whole, to see whether that can be done.
    tolerant : bool
        Count what can be decoded, and read no more than that.

    Raises
    ------
    UnknownContentError
        libsndfile does not know the format.
    InputError
        The disk fails.

    """
    pieces = tuple(pieces)
    with _open(source, pieces) as (file, raw):
        plain = file.subtype.startswith(_PLAIN) and file.format not in _PACKED
        seeks = bool((plain or file.format == "OGG") and file.frames < _UNKNOWN)
        promised = file.frames if file.frames < _UNKNOWN else None
        missing = _missing(file, raw)
        sizes = file.samplerate, file.channels
        floats = file.subtype in {"FLOAT", "DOUBLE"}
        # mpeg.py puts the number of frames in front of layer III; of others libmpg123 guesses it.
        certain = seeks or (file.format == "MP3" and isinstance(pieces[0], bytes))
        counted = decode or tolerant or promised is None or not certain
        if seeks and not counted and promised:
            counted = not _has_last(file)
    damage = None
    frames = promised or 0
    if counted and promised != 0:
        with _open(source, pieces) as (file, raw):
            frames = sum(map(len, _survivors(file)))
            broken = file.broken
            unread = raw.size - raw.tell() if file.format == "MP3" and not broken else 0
        # SDS pads its last packet, and counts one frame more.
        if promised is not None and file.format != "MP3" and frames < promised - 1:
            damage = Damage("its samples end early", frames / sizes[0], (promised - frames) / sizes[0])
        elif unread > _MP3_TAIL:
            share = unread / (raw.size - unread)
            what = "libmpg123 stops early, as where the bit rate changes; convert it (ffmpeg -i FILE FILE.wav)"
            damage = Damage(what, frames / sizes[0], frames / sizes[0] * share)
        elif broken:
            damage = Damage(f"a damaged stretch ({broken})", frames / sizes[0], None)
    if missing and not damage:
        damage = Damage("the header promises more bytes", frames / sizes[0], frames / sizes[0] * missing)
    return Part(source, pieces, *sizes, frames, floats, seeks, tolerant, damage)


@contextmanager
def _open(source: Source, pieces: Sequence[Piece]) -> Iterator[tuple[_Stream, Pieces]]:
    """Return decoder and bytes."""
    with source.open() as (_, read_at):
        raw = Pieces(read_at, pieces)
        try:
            with quiet():
                file = _Stream(raw)
        except soundfile.LibsndfileError as error:
            raise UnknownContentError(error.error_string.rstrip(".")) from error
        try:
            file.broken = ""
            yield file, raw
        except soundfile.LibsndfileError as error:
            if raw.error is None:
                raise UnknownContentError(error.error_string.rstrip(".")) from error
        finally:
            with quiet():
                file.close()
        if raw.error is not None:
            raise raw.error


def _survivors(file: _Stream) -> Iterator[Floats]:
    """Yield f32 [n, channels] for as long as there are any; `broken` then says what ended it."""
    size = max(1, min(_SMALL, _MAX_VALUES // file.channels))
    while True:
        # A read that ends in an error has filled a part of the block.
        block = np.full((size, file.channels), np.nan, np.float32)
        try:
            with quiet():
                read = len(file.read(size, out=block))
        except soundfile.LibsndfileError as error:
            file.broken = error.error_string.rstrip(".") or _UNNAMED
            read = int(np.argmax(np.isnan(block[:, -1]))) if np.isnan(block[-1, -1]) else size
        if not read:
            return
        yield block[:read]


def _between(blocks: Iterator[Floats], first: int, stop: int) -> Iterator[Floats]:
    at = 0
    for block in blocks:
        part = block[max(0, first - at) : max(0, stop - at)]
        at += len(block)
        if len(part):
            yield part
        if at >= stop:
            return


def _has_last(file: _Stream) -> bool:
    try:
        file.seek(file.frames - 1)
        return len(file.read(1)) == 1
    except soundfile.LibsndfileError:
        return False


def _missing(file: _Stream, raw: Pieces) -> float:
    """Return the share of the bytes that are there by which a container is shorter than its header promises."""
    if file.format in {"WAV", "WAVEX", "RF64"}:
        return 0.0  # riff.py looks at their sizes
    if file.format == "NIST":
        at = raw.tell()
        raw.seek(0)
        promised = _NIST_COUNT.search(raw.read(_NIST_HEADER))
        raw.seek(at)
        return max(0.0, int(promised[1]) / file.frames - 1) if promised and file.frames else 0.0
    log = file.extra_info
    sizes = [(int(promised), int(found)) for promised, found in _SHORTER.findall(log)]
    length = _LENGTH.search(log)
    if length and file.format in _PROMISES:  # those of which libsndfile compares nothing
        sizes += [(int(promised), int(length[1])) for promised in _PROMISES[file.format].findall(log)]
    return max(
        (promised / found - 1 for promised, found in sizes if 0 < found < promised and not is_streamed(promised)),
        default=0.0,
    )


class _Quiet:
    """Sends what C libraries print to stderr nowhere; what Python prints still comes through.

    libmpg123 comments on every damaged frame, and libsndfile cannot tell it not to. Its messages go through the C
    library's `stderr`, a variable in glibc; where there is none they are printed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._saved: int | None = None
        try:
            libc = ctypes.CDLL(None)
            self._stderr = ctypes.c_void_p.in_dll(libc, "stderr")
            libc.fopen.restype = ctypes.c_void_p
            self._nowhere = libc.fopen(b"/dev/null", b"w")
        except (OSError, ValueError, AttributeError):
            self._nowhere = None

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0 and self._nowhere:
                self._saved, self._stderr.value = self._stderr.value, self._nowhere
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0 and self._nowhere:
                self._stderr.value = self._saved


_QUIET = _Quiet()


def quiet() -> _Quiet:
    """Return a context in which C libraries print nothing to stderr."""
    return _QUIET
