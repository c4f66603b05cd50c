"""Where a recording's bytes come from: a file, bytes in memory, or a stream that is spooled; never all in memory."""

from __future__ import annotations

import bisect
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from runtime.errors import InputError

# What a pipe or a file object may hold; the temporary file takes so much disk at most.
MAX_SPOOLED = 8 * 2**30
# One read of a stream that is spooled.
_SPOOL_BYTES = 2**20
ReadAt = Callable[[int, int], bytes]
# A stretch of a source (start, stop), or bytes that stand in its place.
Piece = tuple[int, int] | bytes


class Source(Protocol):
    """A recording's bytes. `label` stands in messages and results."""

    label: str

    def open(self) -> Any:
        """Return a context manager of (size, read_at), where read_at(offset, count) returns fewer bytes at the end."""


class FileSource:
    """A file by its path; opened anew each time.

    Raises
    ------
    InputError
        On opening: it is not there, not a file, or empty.

    """

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self._path = path

    @contextmanager
    def open(self) -> Iterator[tuple[int, ReadAt]]:
        """Return size and reader."""
        if not self._path.exists():
            raise InputError(f"{self.label}: expected a recording, found no such file")
        if not self._path.is_file():
            found = "a folder" if self._path.is_dir() else "something that is not a file"
            raise InputError(f"{self.label}: expected a recording, found {found}")
        with self._path.open("rb") as file:
            yield os.fstat(file.fileno()).st_size, lambda at, count: os.pread(file.fileno(), count, at)


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes, label: str = "<bytes>") -> None:
        self.label = label
        self._data = data

    @contextmanager
    def open(self) -> Iterator[tuple[int, ReadAt]]:
        """Return size and reader."""
        yield len(self._data), lambda at, count: self._data[at : at + count]


class SpooledSource:
    """A binary file object or pipe, read to its end into a temporary file without a name.

    Raises
    ------
    InputError
        It holds more than `MAX_SPOOLED` bytes, or gives text.

    """

    def __init__(self, stream: IO[bytes], label: str) -> None:
        self.label = label
        # No name: nothing is left behind, whatever ends the process.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the recording
        while block := stream.read(_SPOOL_BYTES):
            if not isinstance(block, bytes):
                raise InputError(f"{label}: expected a binary file object, found one that gives {type(block).__name__}")
            if self._file.tell() + len(block) > MAX_SPOOLED:
                raise InputError(f"{label}: expected at most {MAX_SPOOLED >> 30} GiB, found more; save it to a file")
            self._file.write(block)
        self._file.flush()
        self._size = self._file.tell()

    @contextmanager
    def open(self) -> Iterator[tuple[int, ReadAt]]:
        """Return size and reader."""
        yield self._size, lambda at, count: os.pread(self._file.fileno(), count, at)


class Pieces(io.RawIOBase):
    """A file of pieces of a source, one behind the other.

    It has no name: by one, soundfile takes x.raw for headerless samples, and libsndfile x.vox and others.
    `error` is the first error of the disk; whoever reads through C code sees only an early end.
    """

    def __init__(self, read_at: ReadAt, pieces: Sequence[Piece]) -> None:
        self.error: OSError | None = None
        self._read_at = read_at
        self._pieces = pieces
        self._starts = [0]
        for piece in pieces:
            size = len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]
            self._starts.append(self._starts[-1] + size)
        self._at = 0
        self._number = 0

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._starts[-1]

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset within the pieces."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._starts[-1]}[whence]
        self._at = max(0, base + offset)
        self._number = max(0, bisect.bisect_right(self._starts, self._at) - 1)
        return self._at

    def tell(self) -> int:
        """Return the offset."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the pieces go."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and (data := self._some(len(view) - filled)):
            view[filled : filled + len(data)] = data
            filled += len(data)
        return filled

    def _some(self, count: int) -> bytes:
        while self._number < len(self._pieces) and self._starts[self._number + 1] <= self._at:
            self._number += 1
        if self._number == len(self._pieces):
            return b""
        piece, within = self._pieces[self._number], self._at - self._starts[self._number]
        if isinstance(piece, bytes):
            data = piece[within : within + count]
        else:
            try:
                data = self._read_at(piece[0] + within, min(count, piece[1] - piece[0] - within))
            except OSError as error:
                self.error = self.error or error
                return b""
        self._at += len(data)
        return data


class JoinedSource:
    """Pieces of a source as a source of their own."""

    def __init__(self, source: Source, pieces: Sequence[Piece]) -> None:
        self.label = source.label
        self._source = source
        self._pieces = tuple(pieces)

    @contextmanager
    def open(self) -> Iterator[tuple[int, ReadAt]]:
        """Return size and reader."""
        with self._source.open() as (_, read_at):
            joined = Pieces(read_at, self._pieces)

            def read(at: int, count: int) -> bytes:
                joined.seek(at)
                return joined.read(count) or b""

            yield joined.size, read
