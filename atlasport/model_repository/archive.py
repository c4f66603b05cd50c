"""Reads files of results from a folder or from acceptance's archive, which may be hostile: nothing is unpacked."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from runtime.errors import InputError

# Verify's results of whisper-tiny have 400 kB, those of twenty models in three steps 20 MB.
MAX_FILE_BYTES = 16 * 2**20
MAX_RESULTS_BYTES = 128 * 2**20
MAX_ARCHIVE_BYTES = 1024 * 2**20
Reader = Callable[[str], "bytes | None"]


def folder_reader(folder: Path) -> Reader:
    """Return a function that gives the bytes of a file below a folder by its name, None where there is none."""

    def read(name: str) -> bytes | None:
        path = folder / name
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if len(data) > MAX_FILE_BYTES:
            raise InputError(f"{path}: expected at most {MAX_FILE_BYTES} bytes; that is no results file")
        return data

    return read


def archive_reader(path: Path) -> Reader:
    """Return the same for a .tar.gz: names are relative to its one folder; links in it are no files.

    Raises
    ------
    InputError
        It cannot be read, or is larger than results are.

    """
    try:
        with path.open("rb") as packed, gzip.open(packed) as unpacked:
            return _results_in(path, unpacked).get
    except (tarfile.TarError, EOFError, zlib.error, RecursionError, UnicodeError, ValueError) as error:
        raise _no_archive(path, error) from error
    except OSError as error:
        if error.errno is not None:  # of the file system; gzip's own have none
            reason = error.strerror or str(error)
            raise InputError(
                f"{path}: cannot be read ({reason.lower()}); name an archive of `atlasport acceptance`"
            ) from error
        raise _no_archive(path, error) from error


def _results_in(path: Path, unpacked: gzip.GzipFile) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    whole = kept = 0
    with tarfile.open(fileobj=_Bounded(unpacked), mode="r:") as tar:
        for member in tar:
            if member.size < 0:  # tarfile would come back to the same member for ever
                raise tarfile.ReadError(f"a member of {member.size} bytes")
            whole += member.size + tarfile.BLOCKSIZE
            if whole > MAX_ARCHIVE_BYTES or kept > MAX_RESULTS_BYTES:
                raise _too_large(path)
            name = member.name.partition("/")[2]
            if not member.isfile() or not name.endswith((".json", ".log")) or member.size > MAX_FILE_BYTES:
                continue
            file = tar.extractfile(member)
            assert file is not None
            contents[name] = file.read()
            kept += len(contents[name])
    return contents


class _Bounded(io.RawIOBase):
    """A stream of which nobody takes more at once than a results file has: tarfile reads a header's text as a whole."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_FILE_BYTES:
            raise tarfile.ReadError(f"{size} bytes in one piece")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if offset > MAX_ARCHIVE_BYTES:
            raise tarfile.ReadError(f"{offset} bytes")
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _too_large(path: Path) -> InputError:
    sizes = f"{MAX_ARCHIVE_BYTES} bytes in it and {MAX_RESULTS_BYTES} of results"
    return InputError(f"{path}: expected at most {sizes}; that is no archive of results")


def _no_archive(path: Path, error: Exception) -> InputError:
    said = " ".join(str(error).split()) or type(error).__name__
    return InputError(
        f"{path}: expected a .tar.gz of `atlasport acceptance`, found something else ({said}); send it again"
    )
