"""The folder of a box: where things lie, who may change them, and how a change gets onto the disk.

Everything new is made under `staging/` and moved. What counts as installed is what `state.json` lists, so its
replacement, one rename, is the moment of every change. Before a version's folder is moved to its place or away from it,
`staging/leftover.json` names it and is on the disk: by that, and by nothing else, the next command knows what a killed
one has left. A version's folder that neither lists is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from runtime.box.state import COPY_NAME, STATE_NAME, BoxState, is_sha256
from runtime.bundle.manifest import BUNDLE_MANIFEST_NAME, SIGNATURE_NAME, BundleManifest
from runtime.disk import disk_errors, make_folder, sync
from runtime.errors import AtlasportError, DamagedArtifactError, EnvironmentNotFitError, InputError

LOCK_WAIT_S = 5.0
MARKER_NAME = "atlasport-box"
LEFTOVER_NAME = "leftover.json"
SELF_TEST_NAME = "self-test.json"
_MARKER = b"A box of atlasport (docs/box.md). Without this file its commands change nothing here.\n"
_LOCK_NAME = "lock"
_ADVICE = "name another --root on a file system with hardlinks"
# What commands write into staging/, besides blobs, and may therefore remove from it.
VERSION_NAME, LINK_NAME = "version", "link"
_STAGED = (STATE_NAME, COPY_NAME, SELF_TEST_NAME, BUNDLE_MANIFEST_NAME, SIGNATURE_NAME, LINK_NAME)


class Box:
    """The folder of a box; reading needs no lock, changing needs `locked`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = path / "blobs"
        self.models = path / "models"
        self.staging = path / "staging"
        self.self_tests = path / "self-tests"
        self._folders = (self.staging, self.blobs, self.models, self.self_tests)

    def exists(self) -> bool:
        """Return whether the folder is a box: whether install has marked it.

        Raises
        ------
        EnvironmentNotFitError
            This user may not know.

        """
        try:
            return stat.S_ISREG((self.path / MARKER_NAME).lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def state(self) -> BoxState:
        """Read the state, from its copy where `state.json` is damaged.

        Raises
        ------
        InputError
            There is no box in the folder, or none of its installs came to an end.
        EnvironmentNotFitError
            The state may not be read.
        DamagedArtifactError
            The state is not one, and neither is its copy.

        """
        return self.state_and_damage()[0]

    def state_and_damage(self) -> tuple[BoxState, DamagedArtifactError | None]:
        """Return `state`, and what is wrong with `state.json` where it is that of the copy; raises as `state`."""
        if not self.exists():
            raise _no_box(self.path, MARKER_NAME)
        found, copy = self._read(STATE_NAME), self._read(COPY_NAME)
        if found is None and copy is None:
            raise _no_box(self.path, STATE_NAME)
        if isinstance(found, BoxState):
            return found, None
        damage = found or DamagedArtifactError(f"{self.path / STATE_NAME}: expected a file, found none; restore it")
        if isinstance(copy, BoxState):
            return copy, damage
        raise damage

    def version_folder(self, model: str, version: str) -> Path:
        """Return the folder of a version, installed or not."""
        return self.models / model / version

    def self_test_file(self, model: str, version: str) -> Path:
        """Return where the result of a version's last self-test lies."""
        return self.self_tests / model / f"{version}.json"

    def blob(self, sha256: str) -> Path:
        """Return the path of a blob, here or not."""
        return self.blobs / sha256

    def strays(self, state: BoxState) -> list[Path]:
        """Return the folders of versions that neither the state nor the command at work lists."""
        states = (state, self._leftover())
        folders = (folder for model in _entries(self.models) for folder in _entries(model) if folder.is_dir())
        return [folder for folder in folders if not any(s.lists(folder.parent.name, folder.name) for s in states)]

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
        except PermissionError as error:
            raise _unreadable(path, error) from error
        except OSError as error:
            found = "none" if isinstance(error, FileNotFoundError | NotADirectoryError) else error.strerror
            raise DamagedArtifactError(
                f"{path}: expected the installed manifest, found {found}; {advice(model, version)}"
            ) from error
        if (digest := hashlib.sha256(data).hexdigest()) != expected:
            raise DamagedArtifactError(
                f"{path}: expected SHA-256 {expected[:12]}, found {digest[:12]}; {advice(model, version)}"
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
            Another command holds the lock, a part of the box is a link, or the folder cannot be written.
        DamagedArtifactError
            The state is lost.

        """
        from filelock import FileLock, Timeout

        if not create:
            self.state()
        with disk_errors(self.path, _ADVICE), _readable_by_all():
            if create:
                self._mark()
            self._refuse_links()
            try:
                with FileLock(self.path / _LOCK_NAME, timeout=LOCK_WAIT_S):
                    for folder in self._folders:
                        folder.mkdir(exist_ok=True)
                    sync(self.path)
                    try:
                        yield self._settled()
                    finally:
                        with contextlib.suppress(OSError, AtlasportError):
                            self._clean(self._listed())
                        with contextlib.suppress(OSError):
                            self.staging.rmdir()
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

    def announce(self, state: BoxState) -> None:
        """Say which folders may be left by a kill: those of versions in this state that the box's own does not list."""
        self.stage(LEFTOVER_NAME, state.to_bytes())
        sync(self.staging)

    def prepare(self, state: BoxState) -> None:
        """Stage what `commit` moves: after that, nothing needs space on the disk any more."""
        for name in (COPY_NAME, STATE_NAME):
            self.stage(name, state.to_bytes())

    def commit(self) -> None:
        """Replace the state by the prepared one: the one moment at which a change becomes true.

        The copy goes first, so that it is never older than the state: all that it says is on the disk by then.
        """
        for name in (COPY_NAME, STATE_NAME):
            (self.staging / name).replace(self.path / name)
            sync(self.path)

    def switch(self, state: BoxState) -> None:
        """Prepare and commit."""
        self.prepare(state)
        self.commit()

    def _read(self, name: str) -> BoxState | DamagedArtifactError | None:
        """Return the state in a file, or what is wrong with it; None where there is no such file."""
        path = self.path / name
        try:
            return BoxState.from_bytes(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        except DamagedArtifactError as error:
            return error
        except OSError as error:
            if error.errno == errno.EIO:
                return DamagedArtifactError(f"{path}: cannot be read ({error.strerror}); the disk has damaged it")
            raise _unreadable(path, error) from error

    def _mark(self) -> None:
        """Make the folder a box, if it is empty or not there."""
        make_folder(self.path)
        others = sorted(path.name for path in self.path.iterdir())
        if not self.exists():
            if others:
                raise InputError(
                    f"{self.path}: expected a box or an empty folder, found {others[0]!r}; name another --root"
                )
            descriptor = os.open(self.path / MARKER_NAME, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_MARKER)
                file.flush()
                sync_file(file.fileno(), 0o644)
        sync(self.path)

    def _refuse_links(self) -> None:
        """Refuse a box of which a part lies elsewhere: what is removed here would be removed there."""
        files = (self.path / name for name in (_LOCK_NAME, STATE_NAME, COPY_NAME))
        below = (entry for folder in (self.models, self.self_tests) for entry in _entries(folder))
        for path in (*files, *self._folders, *below):
            if path.is_symlink():
                raise EnvironmentNotFitError(f"{path}: expected a part of the box, found a link; move it away")

    def _settled(self) -> BoxState:
        """Return the state after what killed commands left is gone and both of its files are whole."""
        state = self._listed()
        self._clean(state)
        for name in (COPY_NAME, STATE_NAME):
            found = self._read(name)
            if found != state and not (found is None and state == BoxState()):
                self.stage(name, state.to_bytes()).replace(self.path / name)
                sync(self.path)
        return state

    def _listed(self) -> BoxState:
        """Return the state; that of an empty box where nothing was ever installed."""
        try:
            return self.state()
        except InputError:
            state = BoxState()
        if lost := self.strays(state):
            raise DamagedArtifactError(
                f"{self.path}: expected {STATE_NAME}, which lists {lost[0]}, found none; restore it, or install into "
                "another --root"
            )
        return state

    def _leftover(self) -> BoxState:
        """Return what the last command announced; nothing where it came to its end."""
        path = self.staging / LEFTOVER_NAME
        try:
            return BoxState.from_bytes(path.read_bytes(), str(path))
        except (OSError, DamagedArtifactError):
            return BoxState()

    def _clean(self, state: BoxState) -> None:
        """Remove what the last command announced and the state does not list, then what lies staged."""
        for name, version in self._leftover().listed():
            folder, tested = self.version_folder(name, version), self.self_test_file(name, version)
            if not state.lists(name, version):
                if folder.exists():
                    shutil.rmtree(folder)
                    sync(folder.parent)
                tested.unlink(missing_ok=True)
        if (folder := self.staging / VERSION_NAME).exists():
            shutil.rmtree(folder)
        for path in _entries(self.staging):
            if is_sha256(path.name) or path.name in _STAGED:
                path.unlink()
        (self.staging / LEFTOVER_NAME).unlink(missing_ok=True)


def advice(model: str, version: str) -> str:
    """Return what helps where a file of an installed version is damaged."""
    return f"install the bundle of {model} {version} again, which repairs it, or roll back"


def sync_file(descriptor: int, mode: int) -> None:
    """Set the mode of an open file and put it onto the disk."""
    os.fchmod(descriptor, mode)
    os.fsync(descriptor)


@contextlib.contextmanager
def _readable_by_all() -> Iterator[None]:
    """Make folders that every user may enter, as the files in them: a service reads what root installs."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def _entries(folder: Path) -> list[Path]:
    """Return what lies in a folder; nothing where it is none."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _no_box(path: Path, lacking: str) -> InputError:
    return InputError(f"{path}: expected a box, found no {lacking}; `atlasport install BUNDLE` makes one")


def _unreadable(path: Path, error: OSError) -> EnvironmentNotFitError:
    return EnvironmentNotFitError(f"{path}: cannot be read ({error.strerror}); change its permissions")
