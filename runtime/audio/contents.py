"""What a look at a file's structure gives: stretches for one decoder each, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runtime.audio.source import Piece, ReadAt

_ID3_HEADER, _ID3_FOOTER, _ID3V1 = 10, 10, 128
_APE_FOOTER = 32
_MAX_TAGS = 10
# Sizes that programs write when they stream and cannot go back to fill in the size: 2**32 - 1, 2**31 - 1, 0x7F000000
# (sox), and values just below or above, rounded to whole blocks or with what comes before the samples.
_STREAMED = (range(0x7EFF0000, 0x7F010000), range(0x7FFF0000, 0x80000001), range(0xFFFF0000, 0x100000001))


@dataclass(frozen=True)
class Damage:
    """What is wrong, and the seconds that are left and lost; `missing_s` is None where nobody can say."""

    what: str
    found_s: float
    missing_s: float | None

    def __str__(self) -> str:
        """Return both on one line."""
        missing = "an unknown time is" if self.missing_s is None else f"about {self.missing_s:.2f} s are"
        return f"{self.what}: {self.found_s:.2f} s found, {missing} missing"

    @property
    def refusal(self) -> str:
        """What was found instead of a recording, and what to do."""
        return f"damaged or truncated file: {self}; --accept-damaged reads what is there"


@dataclass(frozen=True)
class Contents:
    """The stretches of a file, each of which is a recording of its own to a decoder.

    Attributes
    ----------
    links : tuple
        Pieces of each stretch, in the order of time.
    damage : Damage or None
        What is missing; `links` then have what is there.
    remark : str
        What a person should know where nothing is missing.
    seconds : float
        Of what is there, where looking at it told.

    """

    links: tuple[tuple[Piece, ...], ...]
    damage: Damage | None = None
    remark: str = ""
    seconds: float = 0.0


def is_streamed(size: int) -> bool:
    """Tell whether a program that did not know the size wrote this one."""
    return any(size in sizes for sizes in _STREAMED)


def between_tags(size: int, read_at: ReadAt) -> tuple[int, int]:
    """Return start and stop of what lies between tags: ID3v2 in front, ID3v1 and APEv2 behind."""
    start, stop = 0, size
    for _ in range(_MAX_TAGS):
        start += id3_length(read_at(start, _ID3_HEADER))
    if stop > _ID3V1 and read_at(stop - _ID3V1, 3) == b"TAG":
        stop -= _ID3V1
    footer = read_at(stop - _APE_FOOTER, _APE_FOOTER) if stop >= _APE_FOOTER else b""
    if footer.startswith(b"APETAGEX"):
        has_header = footer[23] & 0x80
        stop -= int.from_bytes(footer[12:16], "little") + (_APE_FOOTER if has_header else 0)
    return (start, stop) if start < stop else (0, size)


def id3_length(head: bytes) -> int:
    """Return the length of an ID3v2 tag with these first bytes, 0 where it is none (ID3v2.4, section 3.1)."""
    if len(head) < _ID3_HEADER or not head.startswith(b"ID3") or not head[6:].isascii():
        return 0
    # Seven bits a byte.
    length = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    return _ID3_HEADER + length + (_ID3_FOOTER if head[5] & 0x10 else 0)


def find(read_at: ReadAt, wanted: bytes, start: int, stop: int) -> Iterator[int]:
    """Yield where some bytes stand between two offsets; memory is bounded."""
    block = 2**16
    at = start
    while at < stop:
        data = read_at(at, min(block + len(wanted) - 1, stop - at))
        within = data.find(wanted)
        while within >= 0:
            yield at + within
            within = data.find(wanted, within + 1)
        at += block
