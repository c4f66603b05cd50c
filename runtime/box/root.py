"""The folder of a box: where things lie, who may change them, and how a change gets onto the disk.

Everything new is made under `staging/` and moved. What counts as installed is what `state.json` lists, so its
replacement, one rename, is the moment of every change; whatever else a killed command has left is removed by the next
one that holds the lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from runtime.box.state import STATE_NAME, BoxState
from runtime.bundle.manifest import BUNDLE_MANIFEST_NAME, BundleManifest
from runtime.disk import disk_errors, sync
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, InputError

LOCK_WAIT_S = 5.0
_NAMES = frozenset({"lock", STATE_NAME, "blobs", "models", "self-tests", "staging"})
_ADVICE = "name another --root on a file system with hardlinks"


class Box:
    """The folder of a box; reading needs no lock, changing needs `locked`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = path / "blobs"
        self.models = path / "models"
        self.staging = path / "staging"
        self.self_tests = path / "self-tests"

    def exists(self) -> bool:
        """Return whether there is a box in the folder."""
        return os.path.lexists(self.path / STATE_NAME)

    def state(self) -> BoxState:
        """Read the state.

        Raises
        ------
        InputError
            There is no box in the folder.
        EnvironmentNotFitError
            The state may not be read.
        DamagedArtifactError
            The state is not one.

        """
        path = self.path / STATE_NAME
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            message = f"{self.path}: expected a box, found no {STATE_NAME}; `atlasport install BUNDLE` makes one"
            raise InputError(message) from error
        except OSError as error:
            raise EnvironmentNotFitError(
                f"{path}: cannot be read ({error.strerror}); change its permissions"
            ) from error
        return BoxState.from_bytes(data, str(path))

    def version_folder(self, model: str, version: str) -> Path:
        """Return the folder of a version, installed or not."""
        return self.models / model / version

    def self_test_file(self, model: str, version: str) -> Path:
        """Return where the result of a version's last self-test lies."""
        return self.self_tests / model / f"{version}.json"

    def blob(self, sha256: str) -> Path:
        """Return the path of a blob, here or not."""
        return self.blobs / sha256

    def manifest(self, state: BoxState, model: str, version: str) -> BundleManifest:
        """Read atlas.json of an installed version.

        Raises
        ------
        InputError
            The version is not installed.
        DamagedArtifactError
            The file is not the installed one.

        """
        expected = state.installed(model, version).manifest_sha256
        path = self.version_folder(model, version) / BUNDLE_MANIFEST_NAME
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            message = f"{path}: expected the installed manifest, found none; install another version"
            raise DamagedArtifactError(message) from error
        except OSError as error:
            raise EnvironmentNotFitError(
                f"{path}: cannot be read ({error.strerror}); change its permissions"
            ) from error
        if (found := hashlib.sha256(data).hexdigest()) != expected:
            raise DamagedArtifactError(
                f"{path}: expected SHA-256 {expected[:12]}, found {found[:12]}; install another version"
            )
        return BundleManifest.from_bytes(data, str(path))

    @contextlib.contextmanager
    def locked(self, *, create: bool = False) -> Iterator[BoxState]:
        """Hold the box's lock, remove what killed commands left, and yield the state.

        Parameters
        ----------
        create : bool
            Make a box where there is none.

        Raises
        ------
        InputError
            There is no box, or `create` would make one in a folder that holds something else.
        EnvironmentNotFitError
            Another command holds the lock, or the folder cannot be written.

        """
        from filelock import FileLock, Timeout

        if not self.exists():
            self._check_free(create=create)
        with disk_errors(self.path, _ADVICE):
            if create:
                self.path.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(self.path / "lock", timeout=LOCK_WAIT_S):
                    state = self.state() if self.exists() or not create else BoxState()
                    self._clean(state)
                    try:
                        yield state
                    finally:
                        shutil.rmtree(self.staging, ignore_errors=True)
            except Timeout as error:
                message = f"{self.path}: another command changes this box now; wait for its end and try again"
                raise EnvironmentNotFitError(message) from error

    def stage(self, name: str, data: bytes, mode: int = 0o644) -> Path:
        """Write a file under `staging/` and onto the disk."""
        path = self.staging / name
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            sync_file(file.fileno(), mode)
        return path

    def switch(self, state: BoxState) -> None:
        """Replace the state: the one moment at which a change becomes true."""
        self.commit(self.stage(STATE_NAME, state.to_bytes()))

    def commit(self, staged: Path) -> None:
        """Replace the state by a staged one; needs no further space on the disk."""
        staged.replace(self.path / STATE_NAME)
        sync(self.path)

    def _check_free(self, *, create: bool) -> None:
        """Refuse a folder without a box, unless one may be made there."""
        if not create:
            self.state()
        if self.path.is_dir():
            others = sorted({path.name for path in self.path.iterdir()} - _NAMES)
            if others:
                raise InputError(
                    f"{self.path}: expected a box or an empty folder, found {others[0]!r}; name another --root"
                )

    def _clean(self, state: BoxState) -> None:
        """Remove what no state knows: staged files, versions and self-tests that were not finished or removed."""
        if self.staging.exists():
            shutil.rmtree(self.staging)
        for folder in (self.staging, self.blobs, self.models, self.self_tests):
            folder.mkdir(exist_ok=True)
        known = {(name, version) for name, model in state.models.items() for version in model.installed}
        for folder in self.models.glob("*/*"):
            if (folder.parent.name, folder.name) not in known:
                shutil.rmtree(folder)
        for file in self.self_tests.glob("*/*.json"):
            if (file.parent.name, file.stem) not in known:
                file.unlink()


def sync_file(descriptor: int, mode: int) -> None:
    """Set the mode of an open file and put it onto the disk."""
    os.fchmod(descriptor, mode)
    os.fsync(descriptor)
