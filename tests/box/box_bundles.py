"""Variations of a bundle, made by rewriting its manifest and signing it anew; what lies in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle.archive import open_bundle, write_bundle
from runtime.bundle.signing import sign
from runtime.errors import AtlasportError

MODEL = "sed-pocket"


@dataclass(frozen=True)
class Keys:
    """The key that bundles are signed with, and a stranger's."""

    private: Path
    public: Path
    other_private: Path
    other_public: Path


def changed(bundle: Path, out: Path, key: Path | None, **values: Any) -> Path:
    """Write a copy of a bundle with other values in its manifest, signed with `key`."""
    with open_bundle(bundle) as reader:
        blobs = {}
        for sha256, chunks in reader.blobs():
            blobs[sha256] = out.parent / f"{sha256}.blob"
            blobs[sha256].write_bytes(b"".join(chunks))
        manifest = reader.manifest.model_copy(update=values)
    signature = sign(manifest.to_bytes(), key) if key else None
    write_bundle(out, manifest, signature, blobs)
    for path in blobs.values():
        path.unlink()
    return out


def requiring(bundle: Path, out: Path, key: Path | None, **requirements: Any) -> Path:
    """Write a copy of a bundle that needs something else of the machine."""
    with open_bundle(bundle) as reader:
        needs = reader.manifest.requirements.model_copy(update=requirements)
    return changed(bundle, out, key, requirements=needs)


def names(folder: Path) -> list[str]:
    """What lies in a folder, but for what is hidden."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def tree(folder: Path) -> Mapping[str, tuple[int, bytes]]:
    """Return what lies in a folder: inode and content of every file but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes()) for path in files}


def refused(act: Callable[[], object], kind: type[AtlasportError], *parts: str) -> None:
    """An error of that kind, in one line that names the parts."""
    with pytest.raises(AtlasportError) as caught:
        act()
    assert type(caught.value) is kind, caught.value
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
