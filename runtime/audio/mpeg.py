"""MPEG audio (ISO 11172-3, 13818-3): its frames one by one, since an mp3's header need not tell how many there are."""

# ruff: noqa: PLR2004 - bits and fields have no names but the standard's

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from runtime.audio.contents import Contents, Damage, find, id3_length
from runtime.audio.source import Piece, ReadAt

# kbit/s by index 1 to 14: MPEG-1 layers I to III, then MPEG-2 layers I and II/III.
_RATES_1 = {
    1: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_RATES_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES_2_LAYER_1 = (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
_SAMPLE_RATES = (44_100, 48_000, 32_000)
# 64 kbit/s (MPEG-1) and 80 kbit/s (MPEG-2): the frame has room for a count of frames at every sample rate.
_ROOMY = {True: 5, False: 9}
_MAX_FRAME = 2881
# Frames in a row that no other content has by chance.
_IN_A_ROW = 3
# Bytes in front of the first frame.
_MAX_JUNK = 2**20
_BUFFER = 2**18
_TAGS = (b"TAG", b"APETAGEX", b"LYRICS")
_ID3V1 = 128


# MPEG-1, 2 or 2.5 as 1, 2 or 4; layer; Hz; mono.
_Kind = tuple[int, int, int, bool]


@dataclass(frozen=True)
class _Frame:
    """A frame's header: length in bytes, samples per channel, Hz; `kind` is what stays within a stream."""

    length: int
    samples: int
    rate: int
    mono: bool
    kind: _Kind

    @property
    def layer_3(self) -> bool:
        return self.kind[1] == 3

    @property
    def tag_at(self) -> int:
        """Where a frame that holds the count of frames names itself: behind the side information of layer III."""
        sides = (17, 32) if self.kind[0] == 1 else (9, 17)
        return 4 + sides[not self.mono]


@dataclass
class _Stream:
    """Frames of one kind in a row. `promised` is what a Xing, Info or VBRI frame says."""

    frame: _Frame
    header: bytes
    promised: int | None = None
    tag_frame: bytes = b""
    pieces: list[Piece] = field(default_factory=list)
    count: int = 0
    junk: int = 0  # bytes between frames
    cut: bool = False  # ends within a frame

    def add(self, at: int, length: int) -> None:
        if self.pieces and isinstance(self.pieces[-1], tuple) and self.pieces[-1][1] == at:
            self.pieces[-1] = (self.pieces[-1][0], at + length)
        else:
            self.pieces.append((at, at + length))
        self.count += 1

    @property
    def seconds(self) -> float:
        return self.count * self.frame.samples / self.frame.rate

    @property
    def missing(self) -> float:
        """Frames that the count promises, or that had room in the bytes between frames."""
        if self.promised is not None:
            return max(0, self.promised - self.count)
        size = sum(piece[1] - piece[0] for piece in self.pieces if isinstance(piece, tuple))
        return self.junk * self.count / size if size else 0.0

    def link(self) -> tuple[Piece, ...]:
        """Return its bytes, with the true number of frames in front: libmpg123 guesses without, and stops there."""
        if not self.frame.layer_3:
            return tuple(self.pieces)
        frame = self.tag_frame
        at = self.frame.tag_at
        if frame[at : at + 4] in {b"Xing", b"Info"} and self.promised is not None:
            return (frame[: at + 8] + self.count.to_bytes(4, "big") + frame[at + 12 :], *self.pieces)
        return (_count_frame(self.header, self.count), *self.pieces)


def inspect(start: int, stop: int, read_at: ReadAt, *, junk: bool = False) -> Contents | None:
    """Return the streams of an mp3: one, or several that were joined; None where it does not begin with frames.

    Damage is less frames than a header promises, or bytes between frames. Parts of frames at both ends are none where
    nothing promises them: a stream is joined and left in the middle.
    """
    reader = _Buffered(read_at, stop)
    head = _parse(reader.read(start, 4))
    if head and start + head.length <= stop and _promised(reader, start, head) is not None:
        first: int | None = start  # whatever became of the frames behind it
    else:
        candidates = find(read_at, b"\xff", start, min(start + (_MAX_JUNK if head or junk else 0) + 1, stop))
        first = next((at for at in candidates if _row(reader, at, at_end=at == start)), None)
    if first is None:
        return None
    streams = _streams(reader, first)
    remarks = [f"{first - start} bytes before the first frame are skipped"] if first > start else []
    remarks += ["it ends within a frame"] if streams[-1].cut else []
    missing = sum(stream.missing * stream.frame.samples / stream.frame.rate for stream in streams)
    seconds = sum(stream.seconds for stream in streams)
    damage = Damage("frames are missing", seconds, missing) if missing else None
    return Contents(tuple(stream.link() for stream in streams if stream.count), damage, ", ".join(remarks), seconds)


def _streams(reader: _Buffered, start: int) -> list[_Stream]:
    streams: list[_Stream] = []
    for at, frame in _frames(reader, start):
        if frame is None:
            streams[-1].junk += at
            continue
        if at + frame.length > reader.stop:
            streams[-1].cut = True
            break
        promised = _promised(reader, at, frame)
        if promised is not None:
            tag = reader.read(at, frame.length)
            streams.append(_Stream(frame, tag[:4], promised if promised >= 0 else None, tag))
            continue
        if not streams or streams[-1].frame.kind != frame.kind:
            # Where the stream before has all its frames, the bytes between were this one's.
            junk = streams[-1].junk if streams and streams[-1].promised is not None else 0
            streams.append(_Stream(frame, reader.read(at, 4), junk=junk))
        streams[-1].add(at, frame.length)
    return streams


def _frames(reader: _Buffered, start: int) -> Iterator[tuple[int, _Frame | None]]:
    """Yield offset and frame; for each stretch without frames its number of bytes and None. Tags are left out."""
    at = start
    frame: _Frame | None = None
    kind: _Kind | None = None
    while at < reader.stop:
        # The end is in the middle of a frame where a stream was recorded.
        frame = _parse(reader.read(at, 4)) if at + 4 <= reader.stop else frame
        if frame:
            yield at, frame
            kind, at = frame.kind, at + frame.length
            continue
        tag = _tag_length(reader, at)
        if tag:
            at += tag
            continue
        candidates = find(reader.read_at, b"\xff", at + 1, reader.stop)
        behind = next((b for b in candidates if _row(reader, b) or _row(reader, b, kind, at_end=True)), reader.stop)
        yield behind - at, None
        at = behind


def _tag_length(reader: _Buffered, at: int) -> int:
    head = reader.read(at, 10)
    if head.startswith(_TAGS):
        # Behind an ID3v1 tag another file may follow; behind the others, only that.
        return _ID3V1 if head.startswith(b"TAG") else reader.stop - at
    return id3_length(head)


def _row(reader: _Buffered, at: int, kind: _Kind | None = None, *, at_end: bool = False) -> bool:
    """Tell whether frames of one kind follow each other from here on, with `at_end` also where there are fewer."""
    for _ in range(_IN_A_ROW):
        frame = _parse(reader.read(at, 4))
        if frame is None or frame.kind != (kind or frame.kind):
            return False
        kind, at = frame.kind, at + frame.length
        if at_end and at >= reader.stop - _ID3V1:
            return at <= reader.stop
    return True


def _parse(header: bytes) -> _Frame | None:
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version = {3: 1, 2: 2, 0: 4}.get(header[1] >> 3 & 3)  # MPEG-1, 2 and 2.5; each divides the sample rate
    layer, bits, rate = 4 - (header[1] >> 1 & 3), header[2] >> 4, header[2] >> 2 & 3
    if version is None or layer == 4 or bits in {0, 15} or rate == 3:
        return None
    rates = _RATES_1[layer] if version == 1 else _RATES_2_LAYER_1 if layer == 1 else _RATES_2
    samples = 384 if layer == 1 else 576 if layer == 3 and version > 1 else 1152
    hertz = _SAMPLE_RATES[rate] // version
    slot = 4 if layer == 1 else 1
    length = (samples // 8 // slot * rates[bits - 1] * 1000 // hertz + (header[2] >> 1 & 1)) * slot
    mono = header[3] >> 6 == 3
    return _Frame(length, samples, hertz, mono, (version, layer, hertz, mono))


def _promised(reader: _Buffered, at: int, frame: _Frame) -> int | None:
    """Return the number of frames that a Xing, Info or VBRI frame holds; -1 where it does not say, None for others."""
    if not frame.layer_3:
        return None
    tag = reader.read(at + frame.tag_at, 12)
    if tag.startswith((b"Xing", b"Info")):
        return int.from_bytes(tag[8:12], "big") if tag[7] & 1 else -1
    vbri = reader.read(at + 36, 18)
    return int.from_bytes(vbri[14:18], "big") if vbri.startswith(b"VBRI") else None


def _count_frame(header: bytes, count: int) -> bytes:
    """Return a frame that holds the number of frames and no sound."""
    mpeg_1 = bool(header[1] & 8)
    own = bytes((header[0], header[1] | 1, _ROOMY[mpeg_1] << 4 | header[2] & 0x0C, header[3]))
    frame = _parse(own)
    assert frame is not None
    tag = b"Info" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    return (own + bytes(frame.tag_at - 4) + tag).ljust(frame.length, b"\0")


class _Buffered:
    """Small reads that go forward, through a buffer."""

    def __init__(self, read_at: ReadAt, stop: int) -> None:
        self.stop = stop
        self.read_at = read_at
        self._start = 0
        self._held = b""

    def read(self, at: int, count: int) -> bytes:
        """Return up to `count` bytes at an offset."""
        within = at - self._start
        if within < 0 or within + count > len(self._held):
            self._held = self.read_at(at, max(0, min(_BUFFER, self.stop - at)))
            self._start, within = at, 0
        return self._held[within : within + count]
