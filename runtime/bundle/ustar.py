"""The few bytes of the tar format (POSIX ustar) that a bundle uses, written in one way only."""

from __future__ import annotations

BLOCK = 512
RECORD = 20 * BLOCK
SIZE_FIELD = slice(124, 136)
# 11 octal digits; beyond that the binary form of GNU and star, which every tar reads.
_OCTAL_LIMIT = 8**11


def header(name: str, size: int) -> bytes:
    """Return the one header (ustar, 512 bytes) that a member may have.

    Parameters
    ----------
    name : str
        At most 100 ASCII characters.
    size : int
        Bytes of the member.

    """
    octal = b"%011o\0" % size if size < _OCTAL_LIMIT else b"\x80" + size.to_bytes(11, "big")
    before = name.encode("ascii").ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + octal + b"00000000000\0"
    # Type 0, no link's name, magic and version, no names of users, devices 0, no prefix.
    after = (b"0" + bytes(100) + b"ustar\00000" + bytes(64) + b"0000000\0" * 2).ljust(BLOCK - len(before) - 8, b"\0")
    # The checksum counts its own field as spaces.
    checksum = sum(before) + sum(after) + 8 * ord(" ")
    return before + b"%06o\0 " % checksum + after


def padding(size: int) -> bytes:
    """Return the zeros behind a member of `size` bytes."""
    return bytes(-size % BLOCK)
