"""Opens an artifact: no file of it is used before it was checked."""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from runtime.bounded_json import check_values
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, InputError
from runtime.manifest import MANIFEST_NAME, Content, FileEntry, Manifest, Variant

# A Whisper manifest has about 100 kB and 4000 values; a file far beyond that is not one, and is not parsed.
MAX_MANIFEST_BYTES = 8 * 2**20
_MAX_VALUES = 30_000
GOLDEN_NAME = "golden.safetensors"
# In a bundle, whose golden arrays are those of its self-test: the manifest of the artifact that it was frozen of.
WHOLE_NAME = "whole.json"
_BLOCK = 2**20
_Part = TypeVar("_Part", bound=BaseModel)


# Device, inode, time and size of a manifest: those of the folder alone come again.
_Identity = tuple[int, ...]


@dataclass(frozen=True)
class Artifact:
    """A checked artifact: its folder and its manifest.

    An export or an install may put another one in its place meanwhile. `identity` tells: None is not asked. `blobs` is
    the box's folder of blobs that it was opened with. `unread` are files that are hashed each time they are asked for.
    """

    path: Path
    manifest: Manifest
    blobs: Path | None = None
    identity: _Identity | None = None
    unread: frozenset[str] = frozenset()

    @property
    def content(self) -> Content:
        """The manifest's hashed part."""
        return self.manifest.content

    def check_whole(self) -> None:
        """Refuse an artifact out of a bundle, whose golden arrays are those of its self-test.

        Raises
        ------
        InputError
            It is one.

        """
        if WHOLE_NAME in self.content.files:
            raise InputError(
                f"{self.path}: expected an artifact with all its golden arrays, found one out of a bundle, which has "
                f"those of its self-test alone ({len(self.content.cases)} cases); take the one that it was frozen of, "
                f"whose manifest is {WHOLE_NAME}"
            )

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest lists.

        Raises
        ------
        DamagedArtifactError
            The manifest does not list `name`: its bytes were never checked. Or they are hashed only now, and others.
        EnvironmentNotFitError
            The artifact was replaced since it was opened: what lies there now was not checked.

        """
        if name not in self.content.files:
            msg = f"{self.path}: expected {name!r} in the manifest's list of files, it is not there; export again"
            raise DamagedArtifactError(msg)
        if name in self.unread:
            try:
                _check_file(self.path, name, self.content.files[name], self.blobs)
            except DamagedArtifactError:
                if not self.is_replaced():
                    raise
        if self.is_replaced():
            raise EnvironmentNotFitError(
                f"{self.path}: was replaced or removed after it was opened, by an export maybe; run the command again"
            )
        return self.path / name

    def is_replaced(self) -> bool:
        """Return whether something else lies in the artifact's place now."""
        return self.identity is not None and _identity(self.path) != self.identity

    def reopened(self) -> Artifact:
        """Return what lies in its place now, checked; errors are those of `open_artifact`."""
        return open_artifact(self.path, self.blobs, to_run=bool(self.unread))

    def part(self, name: Literal["dims", "frontend", "settings"], model: type[_Part]) -> _Part:
        """Return a family's part of the manifest, checked against the family's model of it.

        Raises
        ------
        DamagedArtifactError
            A value is missing, unknown or out of range.

        """
        try:
            return model.model_validate(getattr(self.content, name))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join((name, *(str(key) for key in first["loc"])))
            msg = f"{self.path}: manifest, {place}: {first['msg']}; export the model again"
            raise DamagedArtifactError(msg) from error


def open_artifact(path: Path, blobs: Path | None = None, *, to_run: bool = False) -> Artifact:
    """Check the artifact in folder `path` and return it.

    While an export puts another one in its place it begins again, with that one.

    Checks the manifest's form and digests, and for each listed file: a regular file (no link of either kind) inside
    the folder, with the listed size and SHA-256. What the manifest does not list (`results/`, `logs/`, `report.html`,
    which verify writes) is ignored and cannot be reached through `Artifact.file`.

    Parameters
    ----------
    path : Path
        The artifact's folder.
    blobs : Path, optional
        A box's folder of blobs. A file may then be a hardlink, if it is the very file `blobs/<its SHA-256>`.
    to_run : bool
        Leave the SHA-256 of those files that only some programs read, graphs of each format, golden outputs and
        recordings, to `Artifact.file`: of whisper-tiny with two formats half of the bytes.

    Raises
    ------
    InputError
        `path` is not an artifact's folder.
    DamagedArtifactError
        The manifest or a file is not what was exported; the message names the file.
    EnvironmentNotFitError
        A file may not be read by this user.

    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # ONNX Runtime takes no other
        raise InputError(f"{str(path)!a}: expected a path in UTF-8; rename the folder") from error
    while True:
        before = _identity(path)
        try:
            artifact = _checked(path, blobs, to_run=to_run)
        except (InputError, DamagedArtifactError, EnvironmentNotFitError):
            if _identity(path) == before:
                raise
        else:
            if before == _identity(path):
                return replace(artifact, identity=before)


def _identity(folder: Path) -> _Identity | None:
    try:
        status = (folder / MANIFEST_NAME).lstat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _checked(path: Path, blobs: Path | None, *, to_run: bool) -> Artifact:
    """Check all that `open_artifact` checks, of whatever lies there at the moment."""
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing there"
        msg = f"{path}: expected an artifact's folder, found {found}; `atlasport export MODEL` writes one"
        raise InputError(msg)
    # lexists: a broken link is a damaged artifact.
    if not os.path.lexists(path / MANIFEST_NAME):
        msg = f"{path}: not an artifact, it has no {MANIFEST_NAME}; `atlasport export MODEL` writes an artifact"
        raise InputError(msg)
    manifest = _read_manifest(path, blobs)
    content = manifest.content
    artifact = Artifact(path, manifest, blobs)
    some_read = {name for graph in content.graphs.values() for name in graph.files.values()}
    some_read |= {recording.file for recording in content.recordings}
    for name in some_read:
        artifact.file(name)
    unread = some_read | ({GOLDEN_NAME} & content.files.keys()) if to_run else frozenset[str]()
    for name, entry in sorted(content.files.items()):
        _check_file(path, name, entry, blobs, read=name not in unread)
    return replace(artifact, unread=frozenset(unread))


def find_artifact(name_or_path: str, root: Path = Path("artifacts"), variant: Variant = "fp32") -> Path:
    """Return the folder of the artifact that a user named.

    Parameters
    ----------
    name_or_path : str
        An artifact's folder, a folder that holds variants (`artifacts/whisper-tiny`), a model's name (`whisper-tiny`)
        or a model's name with its variant (`whisper-tiny/fp16`).
    root : Path
        Where models' names are looked up.
    variant : {"fp32", "fp16", "bf16"}
        The variant to take where `name_or_path` leaves it open.

    Raises
    ------
    InputError
        There is none; the message lists what is there and the nearest name.
    EnvironmentNotFitError
        A folder may not be looked into.

    """
    given = Path(name_or_path)
    candidates = (given, given / variant, root / given, root / given / variant)
    for candidate in candidates if name_or_path else ():
        if _is_there(candidate / MANIFEST_NAME):
            return candidate
    there = artifacts_in(root)
    names = [folder.relative_to(root).as_posix() for folder in there]
    models = dict.fromkeys(name.rpartition("/")[0] for name in names)
    near = difflib.get_close_matches(name_or_path, [*models, *names], n=3)
    listing = f"{root} holds {', '.join(names)}" if names else f"{root} holds none"
    hint = f"; did you mean {' or '.join(near)}?" if near and name_or_path not in near else ""
    msg = (
        f"{name_or_path!r}: no artifact of variant {variant} by that name or path ({listing}){hint}"
        f"{'' if hint else '; `atlasport export MODEL` makes one'}"
    )
    raise InputError(msg)


def artifacts_in(root: Path) -> list[Path]:
    """Return the folders `root/<model>/<variant>` that hold a manifest, sorted.

    Raises
    ------
    EnvironmentNotFitError
        `root` may not be looked into.

    """
    _is_there(root / MANIFEST_NAME)  # glob finds nothing where it may not look
    return sorted(manifest.parent for manifest in root.glob(f"*/*/{MANIFEST_NAME}"))


def _is_there(path: Path) -> bool:
    """Return whether there is something at the path, a broken link maybe."""
    try:
        path.lstat()
    except PermissionError as error:
        raise _unreadable(path, error) from error
    except (OSError, ValueError):  # a name with a null character is nobody's
        return False
    return True


def _read_manifest(folder: Path, blobs: Path | None) -> Manifest:
    """Read `manifest.json`, a regular file of sane size."""
    path = folder / MANIFEST_NAME
    status = _regular_file(folder, MANIFEST_NAME)
    size = status.st_size
    if size > MAX_MANIFEST_BYTES:
        msg = f"{path}: expected at most {MAX_MANIFEST_BYTES} bytes, found {size}; export the model again"
        raise DamagedArtifactError(msg)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    _check_hardlink(path, status, hashlib.sha256(data).hexdigest(), blobs)
    try:
        check_values(data, _MAX_VALUES)
    except ValueError as error:
        raise DamagedArtifactError(f"{path}: expected a manifest, found {error}; export the model again") from error
    return Manifest.from_bytes(data, str(path))


def _check_file(folder: Path, name: str, entry: FileEntry, blobs: Path | None, *, read: bool = True) -> None:
    """Compare one file with its entry, its content if it is to be read."""
    path = folder / name
    status = _regular_file(folder, name)
    _check_hardlink(path, status, entry.sha256, blobs)
    size = status.st_size
    if size != entry.size:
        msg = f"{path}: expected {entry.size} bytes, found {size}; the artifact is damaged, export the model again"
        raise DamagedArtifactError(msg)
    if not read:
        return
    try:
        found = sha256_of(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if found != entry.sha256:
        msg = (
            f"{path}: expected SHA-256 {entry.sha256[:12]}, found {found[:12]}; "
            "the artifact is damaged, export the model again"
        )
        raise DamagedArtifactError(msg)


def _regular_file(folder: Path, name: str) -> os.stat_result:
    """Return the status of a regular file that no symbolic link leads to."""
    path = folder / name
    try:
        status = path.lstat()
        # A link in the place of a folder above the file shows in the resolved path only.
        linked = stat.S_ISLNK(status.st_mode) or path.resolve() != folder.resolve() / name
    except (FileNotFoundError, NotADirectoryError) as error:
        msg = f"{path}: expected the file that the manifest lists, found none; export the model again"
        raise DamagedArtifactError(msg) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if linked:
        kind = "a symbolic link"
    elif not stat.S_ISREG(status.st_mode):
        kind = "something else"
    else:
        return status
    raise _linked(path, kind)


def _check_hardlink(path: Path, status: os.stat_result, sha256: str, blobs: Path | None) -> None:
    """Refuse a hardlink to anything but the box's blob of the same content."""
    if status.st_nlink == 1:
        return
    if blobs is not None:
        with suppress(OSError):
            if os.path.samestat(status, (blobs / sha256).lstat()):
                return
    raise _linked(path, "a hardlink")


def _linked(path: Path, kind: str) -> DamagedArtifactError:
    # Links are how ONNX external data left its folder (CVE-2026-27489, CVE-2026-34446); onnx refuses hardlinks too.
    return DamagedArtifactError(
        f"{path}: expected a regular file without links, found {kind}; copy the artifact's files again (cp -rL)"
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> EnvironmentNotFitError | DamagedArtifactError:
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return EnvironmentNotFitError(f"{path}: expected a readable file, found {reason}; change its permissions")
    return DamagedArtifactError(f"{path}: expected a readable file, found {reason}; export the model again")
