"""What the tests of freeze share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

from runtime.bundle.archive import open_bundle
from runtime.bundle.manifest import BundleManifest, Waiver
from runtime.manifest import MANIFEST_NAME, Manifest

ALL: tuple[Waiver, ...] = get_args(Waiver)


def unpacked(path: Path, folder: Path, there: Path | None = None) -> BundleManifest:
    """Lay a bundle out as a box has it, by copies."""
    with open_bundle(path) as reader:
        blobs = {sha256: b"".join(chunks) for sha256, chunks in reader.blobs(there)}
        for name, entry in reader.manifest.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if entry.sha256 in blobs:
                (folder / name).write_bytes(blobs[entry.sha256])
            else:
                assert there is not None
                shutil.copyfile(there / entry.sha256, folder / name)
    return reader.manifest


def blobs_of(path: Path, folder: Path) -> Path:
    """Return a box's folder of blobs after the bundle was installed."""
    folder.mkdir(exist_ok=True)
    with open_bundle(path) as reader:
        for sha256, chunks in reader.blobs(folder):
            (folder / sha256).write_bytes(b"".join(chunks))
    return folder


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "results" / "accuracy.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def open_manifest(folder: Path) -> Manifest:
    return Manifest.from_bytes((folder / MANIFEST_NAME).read_bytes(), str(folder))
