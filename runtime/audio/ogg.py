"""Ogg (RFC 3533): which pages are there, which are not, and where one stream of a chain ends and the next begins."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from runtime.audio.contents import Contents, Damage, find
from runtime.audio.source import Piece, ReadAt

_HEADER = 27
_BOS, _EOS = 2, 4
# The first packet of FLAC begins with a mapping's header, before what is a FLAC file (RFC 9639, section 10.1).
_FLAC, _FLAC_MAPPING = b"\x7fFLAC", 9
_NO_GRANULE = 2**64 - 1
# With more, looking for the rest would take time without bound.
_MAX_BAD = 1000
# So many pages missing behind the headers: whoever recorded the stream came later.
_JOINED = 10
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class _Page:
    start: int
    stop: int
    flags: int
    granule: int
    serial: int
    sequence: int
    body: bytes


@dataclass
class _Stream:
    """The pages of one logical stream of a link. Granules are samples at `rate`."""

    rate: int
    pieces: list[Piece] = field(default_factory=list)
    headed: bool = True  # its first page is there
    sequence: int = -1  # of the last page
    granule: int = 0  # of the last page that has one
    granules: int = 0  # that pages brought
    pages: int = 0
    lost: int = 0  # pages before the next one with a granule
    lost_pages: int = 0
    missing: float = 0.0
    ended: bool = False
    joined_s: float = 0.0  # where its recording began
    bare: bool = False  # FLAC: its frames lie in the pages as they are, and libsndfile reads them only without pages

    def add(self, page: _Page) -> None:
        if self.sequence >= 0 and page.sequence > self.sequence + 1:
            self.lost += page.sequence - self.sequence - 1
        self.sequence = page.sequence
        self.ended = bool(page.flags & _EOS)
        start = page.stop - len(page.body) if self.bare else page.start
        start += _FLAC_MAPPING if self.bare and not self.pieces else 0
        if self.pieces and isinstance(self.pieces[-1], tuple) and self.pieces[-1][1] == start:
            self.pieces[-1] = (self.pieces[-1][0], page.stop)
        else:
            self.pieces.append((start, page.stop))
        if page.granule in {0, _NO_GRANULE}:
            return
        advance = max(0, page.granule - self.granule)
        if not self.pages and self.lost > _JOINED:
            self.joined_s = page.granule / self.rate
            advance = self.lost = 0
        # Neighbouring pages are about as long.
        missing = advance * self.lost / (self.lost + 1)
        self.lost_pages += self.lost
        self.missing += missing
        self.granules += advance
        self.pages += 1
        self.granule, self.lost = page.granule, 0


def inspect(start: int, stop: int, read_at: ReadAt) -> Contents:
    """Return the audio streams of an Ogg file, one a link of the chain.

    Damage is a page that is missing by its number, by its checksum, or at the begin or end of a stream.
    """
    links: list[dict[int, _Stream]] = []
    audible: list[_Stream] = []
    bad = 0
    for found in _pages(start, stop, read_at):
        if found is None:
            bad += 1
            continue
        begins = found.flags & _BOS
        if not links or (begins and any(stream.pages or stream.sequence for stream in links[-1].values())):
            links.append({})
        link = links[-1]
        if begins:
            rate = _rate(found.body)
            link[found.serial] = _Stream(rate or 1, bare=found.body.startswith(_FLAC))
            if rate and not any(stream in audible for stream in link.values()):
                audible.append(link[found.serial])
        elif found.serial not in link:
            # Its first page is lost; nobody can decode the others.
            rate = audible[-1].rate if audible else 48_000
            links.append({found.serial: _Stream(rate, headed=False)})
            link = links[-1]
            audible.append(link[found.serial])
        link[found.serial].add(found)
    if not audible:
        return Contents((((start, stop),),), _damage([], bad))  # another codec, or a film without sound
    decodable = [tuple(stream.pieces) for stream in audible if stream.headed]
    joined = [f"recorded from {stream.joined_s:.1f} s of a stream on" for stream in audible if stream.joined_s]
    return Contents(tuple(decodable), _damage(audible, bad), ", ".join(joined))


def _damage(streams: list[_Stream], bad: int) -> Damage | None:
    headless = [stream for stream in streams if not stream.headed]
    open_end = [stream for stream in streams if not stream.ended]
    lost = sum(stream.lost_pages for stream in streams)
    if not (headless or open_end or lost or bad):
        return None
    missing = sum((stream.granules if not stream.headed else stream.missing) / stream.rate for stream in streams)
    found = sum((stream.granules - stream.missing) / stream.rate for stream in streams if stream.headed)
    what = [f"{bad} damaged ogg page{'s' * (bad > 1)} or bytes between pages"] if bad else []
    what += [f"{lost} ogg page{'s are' if lost > 1 else ' is'} missing"] if lost else []
    what += ["the page that begins an ogg stream is missing"] if headless else []
    what += ["the page that ends an ogg stream is missing"] if open_end else []
    return Damage(", ".join(what), found, None if open_end and not missing else missing)


def _pages(start: int, stop: int, read_at: ReadAt) -> Iterator[_Page | None]:
    """Yield the pages, and None for each stretch that is none."""
    at, bad = start, 0
    while at < stop and bad < _MAX_BAD:
        page = _page(at, stop, read_at)
        if page is not None:
            yield page
            at = page.stop
            continue
        yield None
        bad += 1
        at = next(find(read_at, b"OggS", at + 1, stop), stop)


def _page(at: int, stop: int, read_at: ReadAt) -> _Page | None:
    """Return the page at an offset; None where there is none or its checksum is another (section 6)."""
    header = read_at(at, _HEADER + 255)
    if len(header) < _HEADER or not header.startswith(b"OggS\0"):
        return None
    header = header[: _HEADER + header[26]]
    end = at + len(header) + sum(header[_HEADER:])
    body = read_at(at + len(header), end - at - len(header))
    if end > stop or at + len(header) + len(body) < end:
        return None
    if _checksum(header[:22] + bytes(4) + header[26:] + body) != int.from_bytes(header[22:26], "little"):
        return None
    granule, serial, sequence = (int.from_bytes(header[a:b], "little") for a, b in ((6, 14), (14, 18), (18, 22)))
    return _Page(at, end, header[5], granule, serial, sequence, body)


def _checksum(data: bytes) -> int:
    """Return the CRC-32 of polynomial 04c11db7, most significant bit first, from 0, without a last inversion.

    zlib's has the same polynomial, least significant bit first, and inverts at begin and end.
    """
    mirrored = zlib.crc32(data.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def _rate(packet: bytes) -> int:
    """Return granules per second of a stream with this first packet; 0 where it is not audio."""
    if packet.startswith(b"OpusHead"):
        return 48_000  # RFC 7845, section 4
    if packet.startswith(b"\x01vorbis"):
        return int.from_bytes(packet[12:16], "little")
    if packet.startswith(_FLAC):
        return int.from_bytes(packet[27:30], "big") >> 4  # STREAMINFO behind 17 bytes
    if packet.startswith(b"Speex   "):
        return int.from_bytes(packet[36:40], "little")
    return 0
