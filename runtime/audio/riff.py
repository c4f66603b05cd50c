"""Sizes in a wav's header, against what is in the file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from runtime.audio import mpeg
from runtime.audio.contents import Contents, Damage, is_streamed
from runtime.audio.source import Piece, ReadAt

_CHUNK = 8
_MAX_CHUNKS = 10_000
_MPEG_LAYER_3 = 0x55
_IN_DS64 = 0xFFFFFFFF
# Chunks that stand behind the samples; also where a file ends within one, no sample is lost.
_BEHIND = (b"LIST", b"bext", b"id3 ", b"ID3 ", b"cue ", b"fact", b"PEAK", b"smpl", b"iXML", b"axml", b"JUNK", b"PAD ")


@dataclass
class _Header:
    """Where the samples are, how many bytes the header says, and bytes per second, 0 where it does not say."""

    order: Literal["big", "little"]
    data: int = 0
    size: int = 0
    byte_rate: float = 0.0
    kind: int = 0
    in_ds64: int | None = None
    chunks: int = 0


def inspect(start: int, stop: int, read_at: ReadAt) -> Contents:
    """Return a wav's samples (RIFF, RIFX, RF64): whole, to the file's end where its sizes were never filled in.

    Damage is a size that is larger than the file, or a second recording behind the first.
    """
    whole: tuple[Piece, ...] = ((start, stop),)
    header = _header(start, stop, read_at)
    if header.chunks == _MAX_CHUNKS:  # libsndfile would look at them all
        return Contents((), Damage(f"{_MAX_CHUNKS} chunks in the header of a wav", 0.0, None))
    size, there = header.size, stop - header.data
    inside = None
    if header.data and header.kind == _MPEG_LAYER_3:  # whose byte rate may be 0
        inside = mpeg.inspect(header.data, min(header.data + size, stop), read_at)
        header.byte_rate = min(size, there) / inside.seconds if inside and inside.seconds else 0.0
    if not header.data or not header.byte_rate:
        return Contents((whole,))  # libsndfile says what is wrong
    promised_s, there_s = size / header.byte_rate, there / header.byte_rate
    damage, stale = None, False
    if size > there:
        if not is_streamed(size):
            what = f"the header promises {size} bytes, {there} are there"
            damage = Damage(what, there_s, promised_s - there_s)
    elif read_at(header.data + size, 4) == b"RIFF":
        damage = Damage("another wav lies behind the first", promised_s, there_s - promised_s)
    else:
        stale = not _chunks_follow(header.data + size, stop, read_at, header.order)
    if inside:
        return Contents(inside.links, damage or inside.damage)
    if not stale:
        return Contents((whole,), damage)
    if there < _IN_DS64:
        # libsndfile takes this size for "to the end". It finds ds64 by the name of the file's first chunk.
        riff = b"RIFF" if header.in_ds64 is not None else read_at(start, 4)
        pieces: tuple[Piece, ...] = (riff, (start + 4, header.data - 4), b"\xff" * 4, (header.data, stop))
    else:
        ds64 = b"ds64" + struct.pack("<IQQQI", 28, there + header.data, there, 0, 0)
        # In place of one that is stale.
        own = _CHUNK + int.from_bytes(read_at(start + 16, 4), "little") if header.in_ds64 is not None else 0
        rest = (start + 12 + own, header.data - 4)
        pieces = (b"RF64" + b"\xff" * 4 + b"WAVE" + ds64, rest, b"\xff" * 4, (header.data, stop))
    return Contents((pieces,), None, f"the header says {promised_s:.2f} s, read to the file's end: {there_s:.2f} s")


def _header(start: int, stop: int, read_at: ReadAt) -> _Header:
    header = _Header("big" if read_at(start, 4) == b"RIFX" else "little")
    for name, at, size in _chunks(start + 12, stop, read_at, header.order):
        header.chunks += 1
        if name == b"fmt ":
            layout = read_at(at, 16)
            header.kind, header.byte_rate = (int.from_bytes(layout[a:b], header.order) for a, b in ((0, 2), (8, 12)))
        elif name == b"ds64":
            header.in_ds64 = int.from_bytes(read_at(at + 8, 8), "little")
        elif name == b"data":
            header.data = at
            header.size = header.in_ds64 if size == _IN_DS64 and header.in_ds64 is not None else size
            break
    return header


def _chunks(at: int, stop: int, read_at: ReadAt, order: Literal["big", "little"]) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset of the content and size of chunks, as far as the file goes."""
    for _ in range(_MAX_CHUNKS):
        if at + _CHUNK > stop:
            return
        head = read_at(at, _CHUNK)
        size = int.from_bytes(head[4:], order)
        yield head[:4], at + _CHUNK, size
        at += _CHUNK + size + size % 2


def _chunks_follow(at: int, stop: int, read_at: ReadAt, order: Literal["big", "little"]) -> bool:
    """Tell whether what lies behind the samples are chunks to the file's end, or too little for one."""
    for begin in (at + at % 2, at):
        for name, content, size in _chunks(begin, stop, read_at, order):
            if name in _BEHIND:
                return True
            if not (name.isascii() and name.decode("ascii").isprintable()) or content + size > stop:
                break
        else:
            return True
    return False
