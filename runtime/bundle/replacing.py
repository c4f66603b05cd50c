"""Writes a large file so that at its path there is always the old one or the whole new one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from runtime.disk import disk_errors, sync
from runtime.errors import EnvironmentNotFitError


@contextmanager
def replaced_file(path: Path, size: int) -> Iterator[BinaryIO]:
    """Yield a new file that takes the place of `path` at the end, unless an error ends it.

    It is written as `.<name>.partial` beside it. A killed process leaves that file, which the next one takes over.

    Parameters
    ----------
    path : Path
        Its folder is made if it is not there.
    size : int
        Bytes that the file will have: a full disk shows at the beginning.

    Raises
    ------
    EnvironmentNotFitError
        The place cannot be written, the disk is full, or another process writes the same file now.

    """
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path, "write elsewhere (--out)"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial) as file:
            try:
                if size and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                yield file
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        sync(path.parent)


def _locked(partial: Path) -> BinaryIO:
    """Return the empty file `partial`, locked for as long as it is open; what a killed freeze left in it is gone."""
    while True:
        file = os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644), "wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have renamed it between the two calls: then it is a finished bundle.
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(partial)):
                file.truncate()
                return file
        except BlockingIOError as error:
            file.close()
            message = f"{partial}: another freeze writes it now; wait for its end"
            raise EnvironmentNotFitError(message) from error
        except FileNotFoundError:
            pass
        file.close()
