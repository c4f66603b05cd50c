"""What a delta leaves out: blobs that the base has, and the parts of changed files that it has.

All graphs of an artifact share one file of weights. So files are compared part by part: tensors of a safetensors file,
records of a zip file (TorchScript, .pt2). A changed decoder does not resend the encoder.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from runtime.bounded_json import MAX_HEADER_BYTES, MAX_HEADER_VALUES, load_json
from runtime.bundle.archive import BlobSource, BundleReader, FileParts, open_bundle
from runtime.bundle.manifest import MAX_PIECES, Base, BundleManifest, Patch, Piece
from runtime.errors import InputError

# What is smaller is sent whole.
_MIN_BYTES = 2**16
_MIN_HEADER = len(b"{}")
_CHUNK = 2**20


@dataclass(frozen=True)
class Delta:
    """A manifest with its base, and where the patches' own bytes are, by SHA-256."""

    manifest: BundleManifest
    patches: Mapping[str, BlobSource]


def delta_of(manifest: BundleManifest, base: Path, blobs: Mapping[str, Path | bytes]) -> Delta:
    """Return the manifest without what a box with the base has.

    Parameters
    ----------
    manifest : BundleManifest
        The whole new bundle.
    base : Path
        The older bundle of the model.
    blobs : Mapping[str, Path or bytes]
        Where the bytes of each blob of `manifest` are; they are compared part by part.

    Raises
    ------
    InputError
        The base is of another model, or not of an earlier version.
    DamagedArtifactError
        The base is damaged.

    """
    with open_bundle(base) as older:
        _check(manifest, older.manifest, base)
        there = {entry.sha256 for entry in older.manifest.files.values()}
        sizes = {entry.sha256: entry.size for entry in manifest.files.values()}
        new = [sha256 for sha256, size in sizes.items() if sha256 not in there and size >= _MIN_BYTES]
        known = _known_parts(older) if new else {}
        patches: dict[str, Patch] = {}
        own: dict[str, BlobSource] = {}
        room = MAX_PIECES
        for sha256 in sorted(new):
            source = blobs[sha256]
            with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
                patch, ranges = _patch(file, sizes[sha256], known)
            if patch and patch.sha256 not in own and patch.sha256 not in sizes and len(patch.pieces) <= room:
                room -= len(patch.pieces)
                patches[sha256] = patch
                own[patch.sha256] = (
                    FileParts(source, ranges)
                    if isinstance(source, Path)
                    else b"".join(source[offset : offset + length] for offset, length in ranges)
                )
        used = {piece.source for patch in patches.values() for piece in patch.pieces if piece.source}
        found = Base(
            version=older.manifest.version,
            manifest_sha256=hashlib.sha256(older.manifest_bytes).hexdigest(),
            blobs=tuple(sorted((set(sizes) & there) | used)),
            patches=patches,
        )
    # Checked again, unlike by model_copy.
    parts = manifest.model_dump() | {"base": found.model_dump()}
    return Delta(BundleManifest.model_validate(parts), own)


def _check(manifest: BundleManifest, old: BundleManifest, base: Path) -> None:
    if old.model != manifest.model:
        raise InputError(f"{base}: expected a bundle of {manifest.model}, found one of {old.model}; name another base")
    if _numbers(old.version) >= _numbers(manifest.version):
        raise InputError(f"{base}: expected a version before {manifest.version}, found {old.version}; raise --version")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _known_parts(older: BundleReader) -> dict[bytes, tuple[str, int]]:
    """Return blob and offset of every part of the large blobs in the base's archive, by SHA-256."""
    blobs, found = older.manifest.blobs, {}
    with older.path.open("rb") as file:
        for sha256, start in older.positions().items():
            # A patch of the base is no blob.
            if (size := blobs.get(sha256, 0)) >= _MIN_BYTES:
                window = io.BufferedReader(_Window(file, start, size), _CHUNK)
                for offset, digest, _ in _hashed_parts(window, size):
                    found[digest] = (sha256, offset)
    return found


def _patch(
    file: BinaryIO, size: int, known: Mapping[bytes, tuple[str, int]]
) -> tuple[Patch | None, tuple[tuple[int, int], ...]]:
    """Return how the file is made from known parts, and the ranges of it that are new; None where nothing is known."""
    pieces: list[Piece] = []
    ranges: list[tuple[int, int]] = []
    own = hashlib.sha256()
    at = 0
    for offset, digest, length in _hashed_parts(file, size):
        source, start = known.get(digest, (None, at))
        if source is None:
            ranges.append((offset, length))
            at += length
        last = pieces[-1] if pieces else None
        if last and last.source == source and last.offset + last.size == start:
            pieces[-1] = last.model_copy(update={"size": last.size + length})
        else:
            pieces.append(Piece(source=source, offset=start, size=length))
    for offset, length in ranges:
        for chunk in _read(file, offset, length):
            own.update(chunk)
    if at == size:
        return None, ()
    return Patch(sha256=own.hexdigest(), size=at, pieces=tuple(pieces)), tuple(ranges)


def _hashed_parts(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield offset, SHA-256 and size of the parts of a file, which cover it."""
    cuts = sorted({0, *(cut for cut in _cuts(file, size) if 0 < cut < size), size})
    for start, end in pairwise(cuts):
        digest = hashlib.sha256()
        for chunk in _read(file, start, end - start):
            digest.update(chunk)
        yield start, digest.digest(), end - start


def _cuts(file: BinaryIO, size: int) -> list[int]:
    """Return where tensors or records begin and end; a wrong cut costs bytes only."""
    file.seek(0)
    head = file.read(8)
    try:
        if head.startswith(b"PK\3\4"):
            with zipfile.ZipFile(file) as archive:
                # Its header names its position, so data are parts of their own. 30 bytes, name and extra field.
                starts = [entry.header_offset for entry in archive.infolist()]
                sizes = [entry.compress_size for entry in archive.infolist()]
                return [*starts, *_data_cuts(file, starts, sizes)]
        length = int.from_bytes(head, "little")
        if not _MIN_HEADER <= length <= min(size, MAX_HEADER_BYTES):
            return []
        tensors = load_json(file.read(length), MAX_HEADER_VALUES)
        offsets = [entry["data_offsets"] for name, entry in tensors.items() if name != "__metadata__"]
        return [8 + length + int(offset) for pair in offsets for offset in pair]
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError):
        return []
    except (zipfile.BadZipFile, NotImplementedError, OSError):  # a zip of a later version, an offset beyond any file
        return []


def _data_cuts(file: BinaryIO, starts: list[int], sizes: list[int]) -> Iterator[int]:
    """Yield where the data of a zip's records begin and end."""
    for start, size in zip(starts, sizes, strict=True):
        file.seek(start + 26)
        lengths = file.read(4)
        data = start + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        yield data
        yield data + size


def _read(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    file.seek(offset)
    while length:
        chunk = file.read(min(length, _CHUNK))
        if not chunk:
            return
        length -= len(chunk)
        yield chunk


class _Window(io.RawIOBase):
    """`size` bytes of a file from `start` on, as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
