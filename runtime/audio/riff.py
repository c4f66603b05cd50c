"""Sizes in a wav's header, against what is in the file."""

from __future__ import annotations

from runtime.audio import mpeg
from runtime.audio.contents import Contents, Damage, is_streamed
from runtime.audio.source import Piece, ReadAt

_CHUNK = 8
_MPEG_LAYER_3 = 0x55
_IN_DS64 = 0xFFFFFFFF
# Chunks that stand behind the samples; also where a file ends within one, no sample is lost.
_BEHIND = (b"LIST", b"bext", b"id3 ", b"ID3 ", b"cue ", b"fact", b"PEAK", b"smpl", b"iXML", b"axml", b"JUNK", b"PAD ")


def inspect(start: int, stop: int, read_at: ReadAt) -> Contents:
    """Return a wav's samples (RIFF, RIFX, RF64): whole, to the file's end where its sizes were never filled in.

    Damage is a size that is larger than the file.
    """
    whole: Contents = Contents((((start, stop),),))
    order = "big" if read_at(start, 4) == b"RIFX" else "little"
    at, byte_rate, kind, in_ds64 = start + 12, 0, 0, None
    while True:
        head = read_at(at, _CHUNK)
        if len(head) < _CHUNK or at + _CHUNK > stop:
            return whole  # no samples: libsndfile says so
        name, size = head[:4], int.from_bytes(head[4:], order)  # type: ignore[arg-type]
        if name == b"fmt ":
            layout = read_at(at + _CHUNK, 16)
            kind, byte_rate = (int.from_bytes(layout[a:b], order) for a, b in ((0, 2), (8, 12)))  # type: ignore[arg-type]
        elif name == b"ds64":
            in_ds64 = int.from_bytes(read_at(at + _CHUNK + 8, 8), "little")
        elif name == b"data":
            break
        at += _CHUNK + size + size % 2
    data = at + _CHUNK
    if in_ds64 is not None and size == _IN_DS64:
        size = in_ds64
    there = stop - data
    inside = mpeg.inspect(data, min(data + size, stop), read_at) if kind == _MPEG_LAYER_3 else None
    if inside:  # its byte rate may be 0
        byte_rate = min(size, there) / inside.seconds
    if not byte_rate:
        return whole
    remark, damage = "", None
    if size > there and not is_streamed(size):
        what = f"the header promises {size} bytes, {there} are there"
        damage = Damage(what, there / byte_rate, (size - there) / byte_rate)
    elif read_at(data + size, 4) == b"RIFF":
        damage = Damage("another wav lies behind the first", size / byte_rate, (there - size) / byte_rate)
    elif size < there and not _chunks_follow(data + size, stop, read_at, order):
        remark = f"the header says {size / byte_rate:.2f} s, read to the file's end: {there / byte_rate:.2f} s"
        size = there
    if inside:
        return Contents(inside.links, damage or inside.damage)
    if not remark:
        return Contents(whole.links, damage)
    # libsndfile takes this size for "to the end". It finds ds64 by the name of the file's first chunk.
    riff = b"RIFF" if in_ds64 is not None else read_at(start, 4)
    pieces: list[Piece] = [riff, (start + 4, data - 4), b"\xff" * 4, (data, data + size)]
    return Contents((tuple(pieces),), damage, remark)


def _chunks_follow(at: int, stop: int, read_at: ReadAt, order: str) -> bool:
    """Tell whether what lies behind the samples are chunks to the file's end, or too little for one."""
    for padded in (at + at % 2, at):
        here = padded
        while stop - here >= _CHUNK:
            head = read_at(here, _CHUNK)
            size = int.from_bytes(head[4:], order)  # type: ignore[arg-type]
            if head[:4] in _BEHIND:
                return True
            if not head[:4].isascii() or not head[:4].decode("ascii").isprintable() or here + _CHUNK + size > stop:
                break
            here += _CHUNK + size + size % 2
        else:
            return True
    return False
