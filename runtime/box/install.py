"""Installs a bundle: every check first, then the blobs that are not here, then one rename."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.artifact import sha256_of
from runtime.box.requirements import check_disk, check_requirements, default_device
from runtime.box.root import Box, sync_file
from runtime.box.state import STATE_NAME, BoxState, InstalledVersion, ModelState, version_key
from runtime.bundle.archive import BundleReader, open_bundle
from runtime.bundle.manifest import BUNDLE_MANIFEST_NAME, SIGNATURE_NAME, BundleManifest
from runtime.disk import sync
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, InputError

_BLOB_MODE = 0o444
_LISTED = 5  # blobs that a message names


@dataclass(frozen=True)
class Trust:
    """What an install accepts: a signature by `public_key`, and what it is told to overlook by name."""

    public_key: Path | None = None
    allow_unsigned: bool = False
    allow_downgrade: bool = False
    repin: bool = False


@dataclass(frozen=True)
class Installed:
    """What an install did. `new` is False where the very same bundle was installed already; sizes are in bytes."""

    manifest: BundleManifest
    key_id: str | None
    new: bool
    written_bytes: int
    reused_bytes: int
    seconds: float


def install(bundle: Path, root: Path, trust: Trust, device: str | None = None) -> Installed:
    """Install a bundle on the box in `root`, which is made where it is not there. Nothing is switched.

    Parameters
    ----------
    bundle : Path
        The archive.
    root : Path
        The box.
    trust : Trust
        The key, and what to overlook.
    device : str, optional
        What the requirements are checked for; by default what the bundle's profile is made for.

    Raises
    ------
    InputError
        No bundle, no key, a version that does not rise.
    DamagedArtifactError
        The bundle is damaged, unsigned or signed with a key that is not the box's, or a blob on the box is damaged.
    EnvironmentNotFitError
        The machine lacks something, another command changes the box, or the base of a delta is not here.

    """
    started = time.perf_counter()
    with open_bundle(bundle, trust.public_key) as reader:
        manifest = reader.manifest
        key_id = _signed_by(reader, trust)
        check_requirements(manifest.requirements, device or default_device(manifest.profile))
        box = Box(root)
        with box.locked(create=True) as state:
            new_state = _accepted(state, reader, key_id, trust)
            new = _installed_as(state, manifest) is None
            missing = _missing(box, manifest) if new else {}
            if new:
                check_disk(root, sum(missing.values()))
                _store_blobs(box, reader, missing)
                _store_version(box, reader, new_state)
            else:
                reader.check()
                if new_state != state:
                    box.switch(new_state)
    written = sum(missing.values())
    whole = sum({entry.sha256: entry.size for entry in manifest.files.values()}.values())
    return Installed(manifest, key_id, new, written, whole - written, time.perf_counter() - started)


def _signed_by(reader: BundleReader, trust: Trust) -> str | None:
    """Return the id of the key that the signature was found to fit; None where an unsigned one may pass."""
    if reader.signature is not None and trust.public_key is not None:
        from runtime.bundle.signing import key_id

        return key_id(trust.public_key)
    if trust.allow_unsigned:
        return None
    if reader.signature is not None:
        raise InputError(
            f"{reader.path}: expected --public-key to check the signature with, found none; --allow-unsigned installs "
            "it unchecked"
        )
    raise DamagedArtifactError(
        f"{reader.path}: expected a signed bundle, found no signature; --allow-unsigned installs it unchecked"
    )


def _accepted(state: BoxState, reader: BundleReader, key_id: str | None, trust: Trust) -> BoxState:
    """Return the state with the bundle in it, if key and version are acceptable."""
    manifest = reader.manifest
    name, version = manifest.model, manifest.version
    pinned = state.public_key
    if key_id is not None and pinned not in (None, key_id) and not trust.repin:
        raise DamagedArtifactError(
            f"{reader.path}: expected a bundle signed with this box's key {pinned}, found {key_id}; --repin changes "
            "the key"
        )
    model = state.models.get(name, ModelState(highest=version, installed={}))
    digest = hashlib.sha256(reader.manifest_bytes).hexdigest()
    there = model.installed.get(version)
    if there is None and version_key(version) < version_key(model.highest) and not trust.allow_downgrade:
        raise InputError(
            f"{reader.path}: expected {name} {model.highest} or later, found {version}; --allow-downgrade installs an "
            "older one"
        )
    if there is not None and there.manifest_sha256 != digest:
        raise InputError(
            f"{reader.path}: expected a new version of {name}, found another bundle of the installed {version}; "
            "freeze it with a higher --version, or `atlasport remove` the installed one"
        )
    entry = InstalledVersion(manifest_sha256=digest, key_id=key_id or (there.key_id if there else None))
    model = ModelState(
        active=model.active,
        previous=model.previous,
        highest=max(model.highest, version, key=version_key),
        installed={**model.installed, version: entry},
    )
    return state.model_copy(update={"public_key": key_id or pinned}).with_model(name, model)


def _installed_as(state: BoxState, manifest: BundleManifest) -> InstalledVersion | None:
    model = state.models.get(manifest.model)
    return model.installed.get(manifest.version) if model else None


def _missing(box: Box, manifest: BundleManifest) -> dict[str, int]:
    """Return the archive's blobs that are not here, with sizes; those that are here are read and checked."""
    elsewhere = sorted(set(manifest.base.blobs)) if manifest.base else []
    absent = [sha256 for sha256 in elsewhere if not os.path.lexists(box.blob(sha256))]
    if absent and manifest.base:
        names = ", ".join(absent[:_LISTED]) + (f" and {len(absent) - _LISTED} more" if len(absent) > _LISTED else "")
        raise EnvironmentNotFitError(
            f"{manifest.model} {manifest.version} is a delta of {manifest.base.version}: expected its blobs here, "
            f"missing {names}; install {manifest.base.version} first, or the whole bundle"
        )
    here = [sha256 for sha256 in (*manifest.blobs, *elsewhere) if os.path.lexists(box.blob(sha256))]
    for sha256 in here:
        if (found := sha256_of(box.blob(sha256))) != sha256:
            raise DamagedArtifactError(
                f"{box.blob(sha256)}: expected its name as SHA-256, found {found[:12]}; the disk has damaged it, "
                "remove the versions that use it and gc, or install into another --root"
            )
    return {sha256: size for sha256, size in manifest.blobs.items() if sha256 not in set(here)}


def _store_blobs(box: Box, reader: BundleReader, missing: dict[str, int]) -> None:
    """Stream the archive once: blobs that are missing onto the disk, the others through the check only."""
    staged = box.staging / "blobs"
    staged.mkdir()
    for sha256, chunks in reader.blobs(box.blobs):
        if sha256 in missing:
            _write(staged / sha256, chunks)
    # The archive was read to its end: only now may anything of it be kept.
    for sha256 in missing:
        (staged / sha256).rename(box.blob(sha256))
    sync(box.blobs)


def _write(path: Path, chunks: Iterator[bytes]) -> None:
    with path.open("wb", buffering=0) as file:
        for chunk in chunks:
            left = memoryview(chunk)
            while left:
                left = left[file.write(left) :]
        sync_file(file.fileno(), _BLOB_MODE)


def _store_version(box: Box, reader: BundleReader, state: BoxState) -> None:
    """Build the version's folder of hardlinks, move it to its place and replace the state."""
    manifest = reader.manifest
    box.stage(BUNDLE_MANIFEST_NAME, reader.manifest_bytes, _BLOB_MODE)
    folder = box.staging / "version"
    folder.mkdir()
    for name, entry in manifest.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(box.blob(entry.sha256), folder / name)
    (box.staging / BUNDLE_MANIFEST_NAME).rename(folder / BUNDLE_MANIFEST_NAME)
    if reader.signature is not None:
        box.stage(SIGNATURE_NAME, reader.signature, _BLOB_MODE).rename(folder / SIGNATURE_NAME)
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)
    # Written before the folder moves: after that nothing needs space on the disk any more.
    staged = box.stage(STATE_NAME, state.to_bytes())
    target = box.version_folder(manifest.model, manifest.version)
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    sync(target.parent)
    sync(box.models)
    box.commit(staged)
