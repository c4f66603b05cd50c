"""Opens installed versions: their files are hardlinks to the box's blobs, and every byte is checked before use."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.artifact import Artifact, open_artifact
from runtime.box.root import Box, advice
from runtime.box.state import BoxState
from runtime.bundle.manifest import ARTIFACT_FOLDER, BundleManifest
from runtime.errors import DamagedArtifactError, InputError


def open_version(box: Box, state: BoxState, model: str, version: str) -> tuple[Artifact, BundleManifest]:
    """Check an installed version and open its artifact.

    Raises
    ------
    InputError
        It is not installed.
    DamagedArtifactError
        A file is not the installed one; the message names it.

    """
    manifest = box.manifest(state, model, version)
    folder = box.version_folder(model, version)
    check_links(box, folder, manifest)
    try:
        artifact = open_artifact(folder / ARTIFACT_FOLDER, blobs=box.blobs)
    except (DamagedArtifactError, InputError) as error:
        # What it advises is meant for who exports.
        what = str(error).rpartition(";")[0] or str(error)
        raise DamagedArtifactError(f"{what}; {advice(model, version)}") from error
    if artifact.manifest.content_sha256 != manifest.content_sha256:
        raise DamagedArtifactError(
            f"{artifact.path}: expected the artifact {manifest.content_sha256[:12]} of {model} {version}, found "
            f"{artifact.manifest.content_sha256[:12]}; {advice(model, version)}"
        )
    return artifact, manifest


def check_links(box: Box, folder: Path, manifest: BundleManifest) -> None:
    """Check that every file of a version is the blob that its manifest names, of the right size; reads no content.

    Raises
    ------
    DamagedArtifactError
        A file is missing, was replaced or has another size.

    """
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            status, blob = path.lstat(), box.blob(entry.sha256).lstat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedArtifactError(
                f"{error.filename}: expected a file, found none; {advice(manifest.model, manifest.version)}"
            ) from error
        if not os.path.samestat(status, blob) or status.st_size != entry.size:
            raise DamagedArtifactError(
                f"{path}: expected {entry.size} bytes of blob {entry.sha256[:12]}, found another file of "
                f"{status.st_size}; {advice(manifest.model, manifest.version)}"
            )


def open_active(root: Path, model: str) -> tuple[Artifact, BundleManifest]:
    """Check and open the active version of a model on the box in `root`.

    Raises
    ------
    InputError
        No box, no such model, or no version of it is active.
    DamagedArtifactError
        A file is not the installed one.

    """
    box = Box(root)
    state = box.state()
    there = state.model(model)
    if there.active is None:
        versions = ", ".join(there.versions) or "none"
        raise InputError(
            f"{model}: expected an active version, found none; installed: {versions}; "
            f"`atlasport activate {model} VERSION`"
        )
    return open_version(box, state, model, there.active)
