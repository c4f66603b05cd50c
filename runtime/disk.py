"""Writing to a disk that may be full, read-only or foreign, and knowing that it is written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import EnvironmentNotFitError

# What the place is to blame for, not the program.
_UNFIT = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}
    | {errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.EMFILE, errno.EMLINK, errno.EOPNOTSUPP, errno.ELOOP}
    | {errno.EISDIR, errno.ENOLCK}
)


@contextlib.contextmanager
def disk_errors(root: Path, advice: str) -> Iterator[None]:
    """Turn errors of writing below `root` into one line for the user, which ends with what else he may do.

    Raises
    ------
    EnvironmentNotFitError
        The place cannot be written.

    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNFIT:
            raise
        reason = error.strerror or str(error)
        raise EnvironmentNotFitError(
            f"{error.filename or root}: cannot be written ({reason}); free disk space, change permissions, or {advice}"
        ) from error


def sync(path: Path) -> None:
    """Put a file, or the entries of a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems of USB sticks cannot do it for folders.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, and put them onto the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)
