"""Decodes by FFmpeg's libraries (PyAV), the extra `atlasport[av]`: m4a, aac, mp4, webm, amr, wma and more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from runtime.audio.contents import Contents, Damage
from runtime.audio.source import Piece, Pieces, Source
from runtime.engines.base import Floats
from runtime.errors import InputError

EXTRA = "m4a, aac, mp4, webm, amr, wma and others by the extra: pip install 'atlasport[av]'"
# A stream's duration in a header is rounded, or counts what encoders add.
_SLACK_S = 0.1
# Timestamps are rounded to milliseconds, or worse.
_GAP_S = 0.01
# What FFmpeg says where no header has a duration, and what it gives is worth nothing.
_ESTIMATED = "Estimating duration from bitrate"


# Files that begin so hold other things than bare MPEG audio, whatever their bytes look like.
_MAGIC = (
    *(b"RIFF", b"OggS", b"fLaC", b"FORM", b"caff", b"FLV", b"#!AMR"),
    *(b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75"),  # Matroska, ASF
    *(b"\0\0\1\xba", b"\0\0\1\xb3"),  # MPEG program streams
)
_TS_PACKET = 188
HEAD = 2 * _TS_PACKET + 1
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")


def knows(head: bytes) -> bool:
    """Tell whether a file with these first `HEAD` bytes is one of FFmpeg's containers."""
    in_packets = head[::_TS_PACKET] == b"GGG"
    return in_packets or head.startswith(_MAGIC) or head[4:8] in _BOXES


@dataclass
class _Faults:
    """What went wrong in a decoding, and what its timestamps leave out."""

    messages: list[str] = field(default_factory=list)
    gaps_s: float = 0.0
    estimated: bool = False
    expected_s: float | None = None  # time of the next frame; None before the first

    def note_time(self, frame: Any) -> None:
        """Add what lies between the end of the frame before and the begin of this one."""
        expected = self.expected_s or 0.0
        time = expected if frame.pts is None else float(frame.pts * frame.time_base)
        if self.expected_s is not None and time - expected > _GAP_S:
            self.gaps_s += time - expected
        self.expected_s = time + frame.samples / frame.sample_rate


@dataclass(frozen=True)
class AvPart:
    """The first audio stream of a file, of `frames` frames at `rate` Hz."""

    source: Source
    pieces: tuple[Piece, ...]
    rate: int
    frames: int
    floats: bool

    def read(self, first: int, stop: int, block: int) -> Iterator[Floats]:
        """Yield f32 [n, channels] from one frame to another.

        Raises
        ------
        InputError
            The file has changed since it was opened.

        """
        at = 0
        with _open(self.source, self.pieces) as (container, stream):
            for frames in _decode(container, stream, self.rate, _Faults()):
                wanted = frames[max(0, first - at) : max(0, stop - at)]
                at += len(frames)
                for start in range(0, len(wanted), block):
                    yield wanted[start : start + block]
                if at >= stop:
                    return
        raise InputError(f"{self.source.label}: expected a recording, found one that changes while it is read")


def open_parts(source: Source, contents: Contents, why: str) -> tuple[list[AvPart], Damage | None, str]:
    """Return the first audio stream of each stretch of a file, decoded once to count it; what is missing; a remark.

    Parameters
    ----------
    source : Source
        The file.
    contents : Contents
        Its stretches.
    why : str
        What libsndfile said.

    Raises
    ------
    InputError
        PyAV is not installed, or it cannot read the file either.

    """
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"{source.label}: expected a recording (wav, flac, ogg, opus and mp3 are read; {EXTRA}), "
            f"found damaged or other content: {why}"
        ) from error
    parts, damage, gaps = [], None, 0.0
    for pieces in contents.links:
        try:
            with _open(source, pieces) as (container, stream):
                faults = _Faults()
                rate = stream.rate
                if not rate:
                    raise IndexError  # noqa: TRY301 - as where there is no stream
                frames = sum(map(len, _decode(container, stream, rate, faults)))
                floats = stream.codec_context.name.startswith(("pcm_f32", "pcm_f64"))
                short = _promised(container, stream, faults) - frames / rate
        except (av.error.FFmpegError, IndexError) as error:
            found = getattr(error, "strerror", None) or "no audio in it"
            raise InputError(
                f"{source.label}: expected a recording, found damaged or other content: {found} ({why})"
            ) from error
        parts.append(AvPart(source, pieces, rate, frames, floats))
        if faults.messages or short > _SLACK_S:
            what = faults.messages[0] if faults.messages else "its samples end early"
            missing = max(short, faults.gaps_s)
            damage = damage or Damage(what, frames / rate, missing if missing > 0 else None)
        elif faults.gaps_s > _SLACK_S:
            gaps += faults.gaps_s
    remark = f"its timestamps leave out {gaps:.1f} s, which are not in these times" if gaps else ""
    return parts, damage, remark


@contextmanager
def _open(source: Source, pieces: tuple[Piece, ...]) -> Iterator[tuple[Any, Any]]:
    """Return container and stream."""
    import av

    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)
    with source.open() as (_, read_at):
        raw = Pieces(read_at, pieces)
        with av.logging.Capture():
            container = av.open(raw, metadata_errors="ignore")
        try:
            stream = container.streams.audio[0]
            # In one thread, for messages are kept by thread.
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"err_detect": "crccheck"}
            yield container, stream
        finally:
            container.close()
        if raw.error is not None:
            raise raw.error


def _decode(container: Any, stream: Any, rate: int, faults: _Faults) -> Iterator[Floats]:
    """Yield f32 [n, channels], n small; note what goes wrong behind the first samples."""
    import av

    resampler: Any = None
    kind = None
    packets = container.demux(stream)
    while True:
        decoded: list[Any] = []
        # Not around a yield: captures of a thread end in the order in which they began.
        with av.logging.Capture() as logs:
            try:
                packet = next(packets, None)
                decoded = packet.decode() if packet else []
            except av.error.FFmpegError as error:
                packet = None if isinstance(error, av.error.EOFError) else packet
                if faults.expected_s is not None and packet is not None:
                    faults.messages.append(str(error.strerror))
            if faults.expected_s is not None:
                faults.messages += [text.strip() for level, _, text in logs if level <= av.logging.ERROR]
            faults.estimated |= any(_ESTIMATED in text for _, _, text in logs)
        for frame in decoded:
            faults.note_time(frame)
            if kind != (frame.format.name, frame.layout.name, frame.sample_rate):
                kind = (frame.format.name, frame.layout.name, frame.sample_rate)
                # One plane: PyAV reads past the end of the list of planes where there are eight or more.
                resampler = av.AudioResampler("flt", frame.layout, rate)
            try:
                blocks = resampler.resample(frame)
            except (av.error.FFmpegError, ValueError) as error:
                faults.messages.append(f"{frame.layout.nb_channels} channels that cannot be converted ({error})")
                continue
            for block in blocks:
                yield block.to_ndarray().reshape(block.samples, -1)
        if packet is None:
            return


def _promised(container: Any, stream: Any, faults: _Faults) -> float:
    """Return the seconds of a stream by its header, 0 where none has them."""
    if faults.estimated:
        return 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    # Matroska has a duration for all streams together, and one for each as a tag.
    own = str(stream.metadata.get("DURATION", ""))
    if own.count(":") == 2:  # noqa: PLR2004 - hours, minutes, seconds
        hours, minutes, seconds = own.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    if len(container.streams) == 1 and container.duration is not None:
        return float(container.duration) / 1e6
    return 0.0
