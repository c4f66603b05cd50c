"""FLAC (RFC 9639): its frames one by one, for a decoder that stops at the first damaged one."""

# ruff: noqa: PLR2004 - bits and fields have no names but the standard's

from __future__ import annotations

from runtime.audio.contents import find
from runtime.audio.source import Piece, ReadAt

_MAX_HEADER = 16
_MAX_FRAME = 2**22
# Bytes within a frame may look like the next one's header; so many are passed over.
_TRIES = 3


def _table(polynomial: int, bits: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (bits - 1) else 0)
        table.append(value & ((1 << bits) - 1))
    return table


_CRC_8, _CRC_16 = _table(0x107, 8), _table(0x18005, 16)


def whole_frames(start: int, stop: int, read_at: ReadAt) -> tuple[tuple[Piece, ...], float]:
    """Return the header and the frames whose checksums hold, and these frames' share of the bytes up to the last.

    Slow, for damaged files. libFLAC puts silence where a frame's number shows that some before it are not there.
    """
    at = start + 4
    while True:
        head = read_at(at, 4)
        if len(head) < 4:
            return (), 0.0
        at += 4 + int.from_bytes(head[1:], "big")
        if head[0] & 0x80:
            break
    pieces: list[Piece] = [(start, at)]
    first, kept = at, 0
    bounds = [*_headers(at, stop, read_at), stop]
    for number, begin in enumerate(bounds):
        for end in bounds[number + 1 : number + 1 + _TRIES]:
            if begin >= at and end - begin <= _MAX_FRAME and _crc_16(read_at(begin, end - begin)) == 0:
                pieces.append((begin, end))
                kept += end - begin
                at = end
                break
    return tuple(pieces), kept / max(1, at - first)


def _headers(start: int, stop: int, read_at: ReadAt) -> list[int]:
    """Return the offsets of what begins as a frame, with a checksum that holds (section 9.1)."""
    found = []
    for sync in (b"\xff\xf8", b"\xff\xf9"):
        for at in find(read_at, sync, start, stop):
            header = read_at(at, _MAX_HEADER)
            length = _header_length(header)
            if length and len(header) > length and _crc_8(header[:length]) == header[length]:
                found.append(at)
    return sorted(found)


def _header_length(header: bytes) -> int:
    """Return the length of a frame's header before its checksum; 0 where it cannot be one."""
    if len(header) <= 4 or header[2] >> 4 == 0 or header[2] & 15 == 15 or header[3] & 1:
        return 0
    ones = f"{header[4]:08b}".find("0")
    if ones == 1:
        return 0
    number = 7 if ones < 0 else max(1, ones)  # the frame's or sample's number, coded as UTF-8 codes characters
    size = {6: 1, 7: 2}.get(header[2] >> 4, 0)
    rate = {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    return 4 + number + size + rate


def _crc_8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = _CRC_8[value ^ byte]
    return value


def _crc_16(data: bytes) -> int:
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ _CRC_16[value >> 8 ^ byte]
    return value
