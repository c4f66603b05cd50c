"""The user's cache folder: what was downloaded once is there the next time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from runtime.disk import disk_errors


@contextlib.contextmanager
def cache_folder(*names: str) -> Iterator[Path]:
    """Yield a folder below `$XDG_CACHE_HOME/atlasport` (or `~/.cache/atlasport`), which no other process uses now.

    The kernel drops the lock with its process: whoever has it knows that unfinished files are nobody's.

    Raises
    ------
    EnvironmentNotFitError
        The folder cannot be written.

    """
    from filelock import FileLock

    root = os.environ.get("XDG_CACHE_HOME", "")
    # The specification: a relative path counts as none.
    base = Path(root) if Path(root).is_absolute() else Path.home() / ".cache"
    folder = base.joinpath("atlasport", *names)
    with disk_errors(folder, "set XDG_CACHE_HOME to another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            yield folder
