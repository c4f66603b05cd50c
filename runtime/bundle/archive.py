"""The archive: a tar whose every byte follows from the manifest, the signature and the blobs.

Members in this order: `atlas.json`, `atlas.json.sig` where signed, `blobs/<sha256>` sorted. All are regular files of
mode 0644, owner 0, time 0 and no names; paddings are zero; two zero blocks and padding to 10240 end it. Any tar reads
it. The reader here trusts none: it compares each header with the one that it would have written, so links, devices,
absolute paths, names that occur twice and flipped bits have nowhere to be.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NoReturn

from typing_extensions import Self

from runtime.bundle.manifest import BUNDLE_MANIFEST_NAME, SIGNATURE_NAME, BundleManifest, Patch, Piece
from runtime.bundle.replacing import replaced_file
from runtime.bundle.ustar import BLOCK, RECORD, SIZE_FIELD, header, padding
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, InputError

MAX_MANIFEST_BYTES = 4 * 2**20
MAX_SIGNATURE_BYTES = 2**20
_CHUNK = 2**20


class BundleReader:
    """An open bundle whose manifest was checked. A context manager; made by `open_bundle`.

    Attributes
    ----------
    path : Path
        The archive.
    manifest : BundleManifest
        What it says that it holds.
    manifest_bytes : bytes
        `atlas.json` as it is in the archive: what the signature is of.
    signature : bytes or None
        `atlas.json.sig`; None where the bundle is not signed.
    size : int
        Bytes of the archive.

    """

    def __init__(self, path: Path, file: BinaryIO, public_key: Path | None = None) -> None:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: expected a bundle, found no regular file; name an .atlas file")
        self.path = path
        self._file = file
        self.size = status.st_size
        self.manifest_bytes = self._small_member(BUNDLE_MANIFEST_NAME, MAX_MANIFEST_BYTES, self._read(BLOCK))
        at = file.tell()
        following = self._read(BLOCK)
        self.signature: bytes | None = None
        if following.startswith(SIGNATURE_NAME.encode() + b"\0"):
            self.signature = self._small_member(SIGNATURE_NAME, MAX_SIGNATURE_BYTES, following)
            at = file.tell()
        self._blobs_at = at
        if self.signature is not None and public_key is not None:
            from runtime.bundle.signing import verify

            verify(self.manifest_bytes, self.signature, public_key)
        self.manifest = BundleManifest.from_bytes(self.manifest_bytes, str(path))
        expected = archive_size(self.manifest, self.signature)
        if self.size != expected:
            self._damaged(f"expected {expected} bytes, found {self.size}")

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def blobs(self, there: Path | None = None) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Yield the SHA-256 and the chunks (at most 1 MiB) of each blob of `manifest.blobs`, in the archive's order.

        Size and hash of a blob are known to fit once its chunks are consumed without an error; what the caller leaves
        is read before the next blob. After the last one the end of the archive is checked.

        Parameters
        ----------
        there : Path, optional
            Folder `blobs` of the box, from which a delta's patches take what has not changed.

        Raises
        ------
        DamagedArtifactError
            A header, a blob, a padding or the end is not what the manifest says, or a patch's source on the box.

        """
        patched = self.manifest.base.patches if self.manifest.base else {}
        patches = {patch.sha256: (blob, patch) for blob, patch in patched.items()}
        for sha256, own in self.members():
            if sha256 in patches:
                blob, patch = patches[sha256]
                chunks = self._patched(blob, patch, own, there)
            else:
                blob, chunks = sha256, own
            yield blob, chunks
            for _ in chunks:
                pass

    def members(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Yield the SHA-256 and the chunks of each of `manifest.members`: as `blobs`, but patches as they are.

        Raises
        ------
        DamagedArtifactError
            As `blobs`.

        """
        self._file.seek(self._blobs_at)
        for sha256, size in self.manifest.members.items():
            name = f"blobs/{sha256}"
            self._expect(header(name, size), f"header of {name}")
            chunks = self._chunks(sha256, size)
            yield sha256, chunks
            for _ in chunks:
                pass
        self._expect(bytes(self.size - self._file.tell()), "end")

    def check(self) -> None:
        """Read the whole archive.

        Raises
        ------
        DamagedArtifactError
            Something is not what the manifest says.

        """
        for _ in self.members():
            pass

    def positions(self) -> dict[str, int]:
        """Return where in the file each of `manifest.members` begins, by SHA-256."""
        found, at = {}, self._blobs_at
        for sha256, size in self.manifest.members.items():
            found[sha256] = at + BLOCK
            at += BLOCK + size + len(padding(size))
        return found

    def _patched(self, blob: str, patch: Patch, own: Iterator[bytes], there: Path | None) -> Iterator[bytes]:
        digest = hashlib.sha256()
        rest = b""
        for piece in patch.pieces:
            left = piece.size
            with contextlib.ExitStack() as stack:
                source = None if piece.source is None else stack.enter_context(_opened_source(there, piece))
                while left:
                    if source is not None:
                        chunk = source.read(min(left, _CHUNK))
                    else:
                        rest = rest or next(own, b"")
                        chunk, rest = rest[:left], rest[left:]
                    if not chunk:
                        self._damaged(f"blob {blob[:12]}: a piece of it ends too early")
                    left -= len(chunk)
                    digest.update(chunk)
                    yield chunk
        if digest.hexdigest() != blob:
            self._damaged(f"blob {blob[:12]}: found SHA-256 {digest.hexdigest()[:12]} after patching")

    def _chunks(self, sha256: str, size: int) -> Iterator[bytes]:
        digest = hashlib.sha256()
        for start in range(0, size, _CHUNK):
            chunk = self._read(min(_CHUNK, size - start))
            digest.update(chunk)
            yield chunk
        if (found := digest.hexdigest()) != sha256:
            self._damaged(f"blob {sha256[:12]}: found SHA-256 {found[:12]}")
        self._expect(padding(size), f"padding of blob {sha256[:12]}")

    def _small_member(self, name: str, limit: int, found: bytes) -> bytes:
        """Return the member behind the header `found`."""
        size_field = found[SIZE_FIELD]
        if not re.fullmatch(rb"[0-7]{11}\0", size_field) or found != header(name, int(size_field[:11], 8)):
            self._damaged(f"expected the member {name} of a bundle, found something else")
        size = int(size_field[:11], 8)
        if size > limit:
            self._damaged(f"{name}: expected at most {limit} bytes, found {size}")
        data = self._read(size)
        self._expect(padding(size), f"padding of {name}")
        return data

    def _expect(self, expected: bytes, what: str) -> None:
        if self._read(len(expected)) != expected:
            self._damaged(f"{what}: not as freeze writes it")

    def _read(self, count: int) -> bytes:
        """Return exactly `count` bytes."""
        try:
            data = self._file.read(count)
        except OSError as error:
            raise EnvironmentNotFitError(f"{self.path}: cannot be read ({error.strerror}); copy it again") from error
        if len(data) != count:
            self._damaged(f"ends after {self._file.tell()} bytes")
        return data

    def _damaged(self, what: str) -> NoReturn:
        raise DamagedArtifactError(f"{self.path}: {what}; the bundle is damaged, get it again")


def open_bundle(path: Path, public_key: Path | None = None) -> BundleReader:
    """Open a bundle and check its manifest and size; `BundleReader.blobs` checks the rest while it is read.

    Parameters
    ----------
    path : Path
        The archive.
    public_key : Path, optional
        Key or root certificate that a signature, where there is one, must fit; before that the manifest is not parsed.

    Raises
    ------
    InputError
        There is no such file, or no such key.
    EnvironmentNotFitError
        The file may not be read.
    DamagedArtifactError
        It is not a bundle, a damaged one, or one with a signature that does not fit.

    """
    try:
        # A named pipe would wait for its writer.
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        found = "a folder" if isinstance(error, IsADirectoryError) else "nothing there"
        raise InputError(f"{path}: expected a bundle, found {found}; `atlasport freeze` writes one") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise EnvironmentNotFitError(f"{path}: cannot be read ({reason}); change its permissions") from error
    try:
        return BundleReader(path, file, public_key)
    except BaseException:
        file.close()
        raise


@dataclass(frozen=True)
class FileParts:
    """Ranges (offset, bytes) of a file, one after the other."""

    path: Path
    ranges: tuple[tuple[int, int], ...]


BlobSource = Path | bytes | FileParts


def write_bundle(
    path: Path, manifest: BundleManifest, signature: bytes | None, blobs: Mapping[str, BlobSource]
) -> None:
    """Write a bundle: at `path` there is the old file or the whole new one, whatever happens.

    Parameters
    ----------
    path : Path
        The archive; replaced where it is there.
    manifest : BundleManifest
        What it holds.
    signature : bytes or None
        Of `manifest.to_bytes()`.
    blobs : Mapping[str, Path or bytes or FileParts]
        Where the bytes of each SHA-256 in `manifest.members` are. They are hashed again on their way.

    Raises
    ------
    EnvironmentNotFitError
        The place cannot be written, the disk is full, or another freeze writes the same file.
    DamagedArtifactError
        A blob's file has changed since the manifest was made.

    """
    with replaced_file(path, archive_size(manifest, signature)) as file:
        for part in _parts(manifest, signature, blobs):
            file.write(part)


def archive_size(manifest: BundleManifest, signature: bytes | None) -> int:
    """Return the size in bytes of the archive."""
    sizes = [len(manifest.to_bytes()), *([] if signature is None else [len(signature)]), *manifest.members.values()]
    members = sum(BLOCK + size + len(padding(size)) for size in sizes)
    return -(-(members + 2 * BLOCK) // RECORD) * RECORD


def _parts(
    manifest: BundleManifest, signature: bytes | None, blobs: Mapping[str, BlobSource]
) -> Iterator[bytes | memoryview]:
    """Yield the archive piece by piece."""
    written = 0
    for name, data in ((BUNDLE_MANIFEST_NAME, manifest.to_bytes()), (SIGNATURE_NAME, signature)):
        if data is not None:
            member = header(name, len(data)) + data + padding(len(data))
            written += len(member)
            yield member
    for sha256, size in manifest.members.items():
        yield header(f"blobs/{sha256}", size)
        yield from _checked(blobs[sha256], sha256, size)
        yield padding(size)
        written += BLOCK + size + len(padding(size))
    yield bytes(archive_size(manifest, signature) - written)


def _opened_source(there: Path | None, piece: Piece) -> BinaryIO:
    """Return the box's blob that a piece is taken from, open at its offset."""
    if there is None or piece.source is None:
        raise InputError(
            "expected the blobs of the bundle that a delta is based on, found none; install that one first"
        )
    path = there / piece.source
    try:
        file = path.open("rb")
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); install the bundle that the delta is based on") from error
    if os.fstat(file.fileno()).st_size < piece.offset + piece.size:
        file.close()
        raise DamagedArtifactError(f"{path}: a patch takes bytes from behind its end; get the bundle again")
    file.seek(piece.offset)
    return file


def _checked(source: BlobSource, sha256: str, size: int) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a blob, and fail if they are not those of the manifest."""
    digest = hashlib.sha256()
    found = 0
    for chunk in _source_chunks(source):
        found += len(chunk)
        digest.update(chunk)
        if found <= size:
            yield chunk
    if found != size or digest.hexdigest() != sha256:
        where = source if isinstance(source, Path) else f"blob {sha256[:12]}"
        raise DamagedArtifactError(f"{where}: has changed while it was read; run the command again")


def _source_chunks(source: BlobSource) -> Iterator[bytes | memoryview]:
    if isinstance(source, bytes):
        yield source
        return
    path, ranges = (source, None) if isinstance(source, Path) else (source.path, source.ranges)
    buffer = memoryview(bytearray(_CHUNK))
    with _opened(path) as file:
        for offset, length in ranges or ((0, os.fstat(file.fileno()).st_size),):
            file.seek(offset)
            left = length
            while left and (count := file.readinto(buffer[: min(left, _CHUNK)])):
                left -= count
                yield buffer[:count]


def _opened(path: Path) -> FileIO:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise DamagedArtifactError(f"{path}: cannot be read any more ({error.strerror}); export again") from error
