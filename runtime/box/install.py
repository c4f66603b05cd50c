"""Installs a bundle: every check first, then the blobs that are not here whole, then one rename.

The bundle of an installed version repairs it: damaged blobs are written anew, and every installed version that uses
them gets its links to them back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime.artifact import sha256_of
from runtime.box.requirements import check_disk, check_requirements, default_device
from runtime.box.root import LINK_NAME, VERSION_NAME, Box, sync_file
from runtime.box.state import STATE_NAME, BoxState, InstalledVersion, ModelState, version_key
from runtime.bundle.archive import BundleReader, open_bundle
from runtime.bundle.manifest import BUNDLE_MANIFEST_NAME, SIGNATURE_NAME, BundleManifest
from runtime.disk import make_folder, sync
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
    """What an install did. `new` is False where the very same bundle was installed already; sizes are in bytes.

    `repaired` counts the files of installed versions that were damaged and are whole again.
    """

    manifest: BundleManifest
    key_id: str | None
    new: bool
    repaired: int
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
        The bundle is damaged, unsigned or signed with a key that is not the box's, or what a delta is based on is.
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
            needed = _needed(box, manifest, new=new)
            if new:
                _check_place(box, reader)
            if new or needed:
                check_disk(root, sum(needed.values()))
                _store_blobs(box, reader, needed)
            else:
                reader.check()
            repaired = _repair(box, state, reader, reader.signature if key_id else None)
            if new:
                _store_version(box, reader, new_state)
            elif new_state != state:
                box.switch(new_state)
    written = sum(needed.values())
    whole = sum({entry.sha256: entry.size for entry in manifest.files.values()}.values())
    return Installed(manifest, key_id, new, repaired, written, whole - written, time.perf_counter() - started)


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


def _needed(box: Box, manifest: BundleManifest, *, new: bool) -> dict[str, int]:
    """Return the archive's blobs that are not here whole, with sizes; those that are here are read and hashed."""
    needed = {sha256: size for sha256, size in manifest.blobs.items() if not _is_whole(box.blob(sha256), sha256)}
    elsewhere = set(manifest.base.blobs) if manifest.base else set()
    if not (new or needed):  # then nothing is put together of what only the base used
        elsewhere &= {entry.sha256 for entry in manifest.files.values()}
    lacking = [sha256 for sha256 in sorted(elsewhere) if not _is_whole(box.blob(sha256), sha256)]
    if lacking and manifest.base:
        names = ", ".join(lacking[:_LISTED]) + (f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else "")
        damaged = all(os.path.lexists(box.blob(sha256)) for sha256 in lacking)
        kind = DamagedArtifactError if damaged else EnvironmentNotFitError
        raise kind(
            f"{manifest.model} {manifest.version} is a delta of {manifest.base.version}: expected its blobs here, "
            f"{'damaged' if damaged else 'missing'} {names}; install {manifest.base.version} first, or the whole bundle"
        )
    return needed


def _is_whole(blob: Path, sha256: str) -> bool:
    """Return whether a blob is here and is what its name says; what the disk cannot read is not."""
    try:
        return stat.S_ISREG(blob.lstat().st_mode) and sha256_of(blob) == sha256
    except PermissionError:
        raise
    except OSError:
        return False


def _check_place(box: Box, reader: BundleReader) -> None:
    """Refuse to install over a folder that no state lists, unless it is this very version."""
    target = box.version_folder(reader.manifest.model, reader.manifest.version)
    if not os.path.lexists(target):
        return
    manifest = target / BUNDLE_MANIFEST_NAME
    if not (manifest.is_file() and manifest.read_bytes() == reader.manifest_bytes):
        raise DamagedArtifactError(
            f"{target}: expected nothing, found a folder that {STATE_NAME} does not list; move it away"
        )


def _store_blobs(box: Box, reader: BundleReader, needed: Collection[str]) -> None:
    """Stream the archive once: blobs that are needed onto the disk, the others through the check only."""
    for sha256, chunks in reader.blobs(box.blobs):
        if sha256 in needed:
            _write(box.staging / sha256, chunks)
    # The archive was read to its end: only now may anything of it be kept.
    for sha256 in needed:
        (box.staging / sha256).replace(box.blob(sha256))
    sync(box.blobs)


def _repair(box: Box, state: BoxState, reader: BundleReader, signature: bytes | None) -> int:
    """Give installed versions back what was lost of them and is in the bundle; return how many files that were."""
    manifest = reader.manifest
    repaired = 0
    if state.lists(manifest.model, manifest.version):
        folder = _own_folder(box, box.version_folder(manifest.model, manifest.version))
        for name, data in ((BUNDLE_MANIFEST_NAME, reader.manifest_bytes), (SIGNATURE_NAME, signature)):
            if data is not None and not _holds(folder / name, data):
                box.stage(name, data, _BLOB_MODE).replace(folder / name)
                sync(folder)
                repaired += 1
    blobs = {entry.sha256 for entry in manifest.files.values()}
    for model, version in state.listed():
        try:
            files = box.manifest(state, model, version).files
        except DamagedArtifactError:
            continue  # its own bundle repairs that
        wanted = ((name, entry.sha256) for name, entry in files.items() if entry.sha256 in blobs)
        repaired += sum(_linked(box, box.version_folder(model, version) / name, sha256) for name, sha256 in wanted)
    return repaired


def _linked(box: Box, path: Path, sha256: str) -> bool:
    """Make a version's file a link to its blob; return whether it was not."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if os.path.samestat(path.lstat(), box.blob(sha256).lstat()):
            return False
    folder = _own_folder(box, path.parent)
    link = box.staging / LINK_NAME
    os.link(box.blob(sha256), link)
    link.replace(path)
    sync(folder)
    return True


def _own_folder(box: Box, folder: Path) -> Path:
    """Return a folder of the box, made where it is not there; no link may lead out of the box."""
    if folder.resolve() != box.path.resolve() / folder.relative_to(box.path):
        raise EnvironmentNotFitError(f"{folder}: expected a folder of the box, found a link; move it away")
    make_folder(folder)
    return folder


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


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
    folder = box.staging / VERSION_NAME
    folder.mkdir()
    for name, entry in manifest.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(box.blob(entry.sha256), folder / name)
    for name, data in ((BUNDLE_MANIFEST_NAME, reader.manifest_bytes), (SIGNATURE_NAME, reader.signature)):
        if data is not None:
            box.stage(name, data, _BLOB_MODE).rename(folder / name)
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)
    box.announce(state)
    # Written before the folder moves: after that nothing needs space on the disk any more.
    box.prepare(state)
    target = box.version_folder(manifest.model, manifest.version)
    make_folder(target.parent)
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)
    sync(target.parent)
    box.commit()
