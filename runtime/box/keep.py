"""Removes versions that are not used, and blobs that no version uses."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from runtime.box.root import Box
from runtime.disk import sync
from runtime.errors import InputError


@dataclass(frozen=True)
class Collected:
    """Blobs that gc removed, and their bytes."""

    blobs: int
    freed_bytes: int


def remove(root: Path, model: str, version: str) -> None:
    """Remove an installed version that is not active; its blobs stay until `gc`.

    Raises
    ------
    InputError
        It is not installed, or it is active.

    """
    box = Box(root)
    with box.locked() as state:
        there = state.model(model)
        state.installed(model, version)
        if there.active == version:
            raise InputError(
                f"{model} {version}: expected a version that is not active, found the active one; activate another"
            )
        left = {name: entry for name, entry in there.installed.items() if name != version}
        previous = None if there.previous == version else there.previous
        box.switch(state.with_model(model, there.model_copy(update={"installed": left, "previous": previous})))
        # From here on the folder is rubbish, which the next command would remove, too.
        shutil.rmtree(box.version_folder(model, version))
        box.self_test_file(model, version).unlink(missing_ok=True)


def gc(root: Path) -> Collected:
    """Remove the blobs that no installed version uses.

    Raises
    ------
    DamagedArtifactError
        An installed version's atlas.json cannot be read: what it uses is not known, and nothing is removed.

    """
    box = Box(root)
    with box.locked() as state:
        used = {
            entry.sha256
            for name, model in state.models.items()
            for version in model.installed
            for entry in box.manifest(state, name, version).files.values()
        }
        freed = [path for path in box.blobs.iterdir() if path.name not in used]
        size = sum(path.lstat().st_size for path in freed)
        for path in freed:
            path.unlink()
        sync(box.blobs)
    return Collected(len(freed), size)
