"""Puts a finished artifact in its place, so that whatever happens there is a whole one there or none.

An artifact is made in a folder beside `<out>/<model>`, which no reader looks into, and moved at the end. The lock
decides who may make it; the kernel drops a lock with its process, so whoever holds it knows that every temporary
folder of the same artifact was left by a process that is dead.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from runtime.disk import disk_errors, sync
from runtime.errors import EnvironmentNotFitError, InputError
from runtime.manifest import MANIFEST_NAME

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def workspace(target: Path, mark: str = MANIFEST_NAME) -> Iterator[Path]:
    """Yield an empty folder on the file system of `target`, an artifact's folder `<out>/<model>/<variant>`.

    The folder is removed at the end if it is still there, and so are those that killed exports left. What has a file
    `mark` is taken for an export and may be replaced.

    Raises
    ------
    EnvironmentNotFitError
        The place cannot be written, the disk is full, or another export of this artifact runs.
    InputError
        `target` holds something that is not an artifact: it would be lost.

    """
    out = target.parents[1]
    # "@" is in no model's name: two artifacts never share a prefix.
    prefix = f".{target.parent.name}@{target.name}"
    with export_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out / f"{prefix}.lock", target):
            for left in out.glob(f"{prefix}@*.tmp"):
                _take_back(left, target)
            if target.exists() and not (target / mark).exists() and (target.is_file() or any(target.iterdir())):
                raise InputError(f"{target}: holds something else than an export; move it away, or export elsewhere")
            folder = out / f"{prefix}@{secrets.token_hex(4)}.tmp"
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Move a finished artifact from `folder` to `target`; what was there is then in `folder`, or gone.

    Everything is on the disk before it is moved. Where the system can exchange two folders (Linux: renameat2) there
    is at every moment a whole artifact at `target`. Elsewhere the old one is moved away first: a kill between the
    two moves leaves none, and the next export begins with moving it back.
    """
    for path in (*folder.rglob("*"), folder):
        sync(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        folder.rename(target)
    elif not _exchange(folder, target):
        old = folder.with_name(folder.name.removesuffix(".tmp") + ".old.tmp")
        target.rename(old)
        folder.rename(target)
        shutil.rmtree(old)
    sync(target.parent)
    sync(target.parents[1])


def check_space(folder: Path, needed: int) -> None:
    """Raise EnvironmentNotFitError unless the disk of `folder` has `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentNotFitError(
            f"{folder.parent}: expected {needed / 1e9:.1f} GB of free disk, found {free / 1e9:.1f} GB; "
            "free some, or export elsewhere (--out)"
        )


@contextlib.contextmanager
def export_errors(out: Path) -> Iterator[None]:
    """Turn errors of writing below `out` into one line for the user."""
    try:
        with disk_errors(out, "export elsewhere (--out)"):
            yield
    except RuntimeError as error:  # torch's writer has no error of its own
        if "PytorchStreamWriter failed" not in str(error):
            raise
        raise EnvironmentNotFitError(
            f"{out}: cannot be written (torch failed to write a file); free disk space, or export elsewhere (--out)"
        ) from error


@contextlib.contextmanager
def _locked(path: Path, target: Path) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EnvironmentNotFitError(f"{target}: another export writes it now; wait for its end") from error
        yield


def _take_back(left: Path, target: Path) -> None:
    """Clean up after a killed export."""
    if left.name.endswith(".old.tmp") and not target.exists():
        left.rename(target)
    else:
        shutil.rmtree(left, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    paths = (os.fsencode(first), os.fsencode(second))
    return bool(renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0)
