"""Removes versions that are not used, and blobs that no version uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.box.root import Box
from runtime.box.state import STATE_NAME, is_sha256
from runtime.box.versions import check_links
from runtime.disk import sync
from runtime.errors import DamagedArtifactError, InputError


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
        # From the switch on its folder is rubbish, which goes at the end of this command, or at the next one's start.
        box.announce(state)
        box.switch(state.with_model(model, there.model_copy(update={"installed": left, "previous": previous})))


def gc(root: Path) -> Collected:
    """Remove the blobs that no installed version uses.

    Raises
    ------
    DamagedArtifactError
        State and disk disagree: a file of an installed version is missing or another one, or there is a version that
        the state does not list. What is used is then not known, and nothing is removed.

    """
    box = Box(root)
    with box.locked() as state:
        used: set[str] = set()
        for name, version in state.listed():
            manifest = box.manifest(state, name, version)
            check_links(box, box.version_folder(name, version), manifest)
            used |= {entry.sha256 for entry in manifest.files.values()}
        if strays := box.strays(state):
            raise DamagedArtifactError(
                f"{strays[0]}: expected only versions that {STATE_NAME} lists, found this one; nothing is removed: "
                "install its bundle again, or move the folder away"
            )
        paths = [path for path in box.blobs.iterdir() if is_sha256(path.name) and path.name not in used]
        freed = [path for path in paths if not path.is_dir()]
        size = sum(path.lstat().st_size for path in freed)
        for path in freed:
            path.unlink()
        sync(box.blobs)
    return Collected(len(freed), size)
