"""A folder in which recordings arrive, and a folder for results: each recording is handled once, whatever is killed.

Every step is one rename on one file system, in an order such that what is found after a kill or a power cut says how
far it got:

1. A file that did not change between two looks is claimed: moved to `IN/.atlasport/claimed/`. Whoever writes another
   file under its name writes another file.
2. Its results are written to `OUT/.atlasport/staging/<key>/`, which nobody reads.
3. That folder is moved to `OUT/.atlasport/ready/<key>/`: from here on the recording counts as handled.
4. The results are moved to `OUT/`, and then the recording to `IN/done/<key>`.
5. The empty folder in ready/ is removed.

`<key>` is `<stem>.<first 16 digits of the content's SHA-256><suffix>`: recorders use names again, so a name alone does
not say which recording a result belongs to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.artifact import sha256_of
from runtime.disk import make_folder, sync
from runtime.errors import EnvironmentNotFitError, InputError

DONE, FAILED, OWN = "done", "failed", ".atlasport"
# What programs append to the names of files that they have not finished.
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart")
# So often may work on a recording begin without coming to an end: a device or the process may have died of it.
MAX_INTERRUPTIONS = 3
# No permission, or a disk that does not give a file back.
_UNREADABLE = frozenset({errno.EACCES, errno.EPERM, errno.EIO, errno.EUCLEAN, errno.EBADMSG})
_HASH_DIGITS = 16
# Names have at most 255 bytes; hash, result's suffix and ".error" need room.
_STEM_BYTES, _SUFFIX_BYTES = 150, 20
# Device, inode, size, time of the last change: what stays while nobody writes to a file.
_State = tuple[int, int, int, int]


@dataclass(frozen=True)
class Recording:
    """A claimed file. `name` is printable, `stem` begins the results' names, `key` is its name in done/ or failed/.

    `problem` is why it cannot be read, "" where it can.
    """

    path: Path
    name: str
    stem: str
    key: str
    sha256: str
    state: _State
    problem: str = ""


class Inbox:
    """The two folders, for one process at a time.

    Parameters
    ----------
    inbox : Path
        Where recordings arrive. Names that begin with a dot or end in one of `UNFINISHED`, folders and links stay.
    out : Path
        Where results go; made if it is not there.
    suffixes : tuple of str
        Of the results of one recording: `<stem>.<suffix>`.

    Raises
    ------
    EnvironmentNotFitError
        `inbox` is not a folder: a disk that comes and goes may bring it.
    InputError
        `out` is `inbox` or one of its own folders.

    """

    def __init__(self, inbox: Path, out: Path, suffixes: tuple[str, ...]) -> None:
        if not inbox.is_dir():
            raise EnvironmentNotFitError(
                f"{inbox}: expected the folder in which recordings arrive, found none; make it"
            )
        self.inbox, self.out = inbox.resolve(), out.resolve()
        taken = (self.inbox, *(self.inbox / name for name in (DONE, FAILED, OWN)))
        if self.out in taken:
            raise InputError(f"{out}: expected another folder for results than {inbox} and its {DONE}/ and {FAILED}/")
        self._suffixes = suffixes
        self._done, self._failed = self.inbox / DONE, self.inbox / FAILED
        self._claimed = self.inbox / OWN / "claimed"
        self._interruptions = self.inbox / OWN / "interruptions"
        self._staging, self._ready = self.out / OWN / "staging", self.out / OWN / "ready"
        self._last_look: dict[str, _State] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Take both folders and finish what a killed process left.

        Raises
        ------
        EnvironmentNotFitError
            Another process serves one of them, or a folder is a link or a file.

        """
        from filelock import FileLock, Timeout

        with contextlib.ExitStack() as stack:
            make_folder(self.out)
            for folder in (self.inbox, self.out):
                own = folder / OWN
                _make_own(own, 0o700)
                try:
                    stack.enter_context(FileLock(own / "lock", timeout=0))
                except Timeout as error:
                    raise EnvironmentNotFitError(
                        f"{folder}: another serve-dir uses it now; stop that one, or serve another folder"
                    ) from error
            for folder in (self._done, self._failed, self._claimed, self._interruptions, self._staging, self._ready):
                _make_own(folder)
            self._recover()
            yield

    def look(self) -> list[str]:
        """Return the names of the files that are as they were at the look before, the oldest first."""
        seen: dict[str, _State] = {}
        with os.scandir(self.inbox) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or name.endswith(UNFINISHED) or not entry.is_file(follow_symlinks=False):
                    continue
                with contextlib.suppress(FileNotFoundError):  # taken back since
                    seen[name] = _state(entry.stat(follow_symlinks=False))
        stable = [name for name, state in seen.items() if self._last_look.get(name) == state]
        self._last_look = seen
        return sorted(stable, key=lambda name: (seen[name][-1], name))

    def claim(self, name: str) -> bool:
        """Take a file that `look` returned; False where it has changed or gone since, or its name is taken."""
        path, target = self.inbox / name, self._claimed / name
        try:
            if os.path.lexists(target) or _state(path.lstat()) != self._last_look.get(name):
                return False
            path.rename(target)
        except FileNotFoundError:
            return False
        return True

    def pending(self) -> Iterator[Recording]:
        """Yield the claimed recordings that have no results yet; those that have are moved to done/.

        A file that changes while it is read stays for the next call: somebody writes to it still.
        """
        for path in sorted(self._claimed.iterdir()):
            recording = self._identify(path)
            if recording and self._is_handled(recording):
                self._retire(recording)
            elif recording:
                yield recording

    def finish(self, recording: Recording, write: Callable[[Path], None]) -> bool:
        """Keep a recording's results and move it to done/.

        `write` writes the results into the folder that it is given. Returns False, with nothing kept, where somebody
        wrote to the recording meanwhile.
        """
        staging = self._staging / recording.key
        staging.mkdir()
        try:
            write(staging)
            if _state(recording.path.lstat()) != recording.state:
                self.forget(recording)
                return False
            for path in (*staging.iterdir(), staging):
                sync(path)
            staging.rename(self._ready / recording.key)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        sync(self._ready)
        self._publish(self._ready / recording.key)
        self._retire(recording)
        return True

    def fail(self, recording: Recording, reason: str) -> str:
        """Move a recording to failed/, with the reason beside it as one line in `<key>.error`; return that line."""
        line = " ".join(reason.replace(str(recording.path), recording.name).split())
        _write(self._failed / f"{recording.key}.error", line)
        recording.path.replace(self._failed / recording.key)
        for folder in (self._failed, self._claimed):
            sync(folder)
        self.forget(recording)
        return line

    def begin(self, recording: Recording) -> bool:
        """Note, on the disk, that work on a recording begins; False where it has begun `MAX_INTERRUPTIONS` times.

        Whatever ends this process meanwhile, the next one knows. `finish`, `fail` and `forget` take the note back.
        """
        count = self.interruptions(recording)
        if count >= MAX_INTERRUPTIONS:
            return False
        _write(self._note(recording), str(count + 1))
        return True

    def interruptions(self, recording: Recording) -> int:
        """Return how often work on a recording has begun and not come to an end."""
        try:
            return int(self._note(recording).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return 0

    def forget(self, recording: Recording) -> None:
        """Take back what `begin` noted: the work ended, or what ended it was not the recording."""
        self._note(recording).unlink(missing_ok=True)

    def _note(self, recording: Recording) -> Path:
        """Return where `begin` counts."""
        return self._interruptions / f"{recording.key}.count"

    def _recover(self) -> None:
        for folder in self._staging.iterdir():
            shutil.rmtree(folder)
        for folder in self._ready.iterdir():
            self._publish(folder)
        claimed = [self._identify(path) for path in self._claimed.iterdir()]
        for recording in filter(None, claimed):
            if (self._ready / recording.key).exists():
                self._retire(recording)
        if None not in claimed:  # notes of recordings that are handled, or were taken away
            notes = {self._note(recording) for recording in filter(None, claimed)}
            for path in self._interruptions.iterdir():
                if path not in notes:
                    path.unlink()
        for folder in self._ready.iterdir():
            folder.rmdir()

    def _identify(self, path: Path) -> Recording | None:
        """Read a claimed file; None where it changes meanwhile or is gone. One that cannot be read has no hash."""
        name = os.fsencode(path.name).decode("utf-8", "replace")
        stem, suffix = _truncated(path.name)
        try:
            state = _state(path.lstat())
            sha256 = sha256_of(path)
            if _state(path.lstat()) != state:
                return None
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            return Recording(path, name, stem, stem + suffix, "", state, error.strerror or str(error))
        mark = f".{sha256[:_HASH_DIGITS]}"
        # What an operator moves back from done/ or failed/ keeps its name.
        marked = stem if stem.endswith(mark) else stem + mark
        return Recording(path, name, marked, marked + suffix, sha256, state)

    def _is_handled(self, recording: Recording) -> bool:
        if not recording.sha256:
            return False
        results = [self.out / f"{recording.stem}.{suffix}" for suffix in self._suffixes]
        return (self._done / recording.key).exists() or all(path.exists() for path in results)

    def _publish(self, ready: Path) -> None:
        for path in sorted(ready.iterdir()):
            path.replace(self.out / path.name)
        sync(self.out)

    def _retire(self, recording: Recording) -> None:
        recording.path.replace(self._done / recording.key)
        for folder in (self._done, self._claimed):
            sync(folder)
        self.forget(recording)
        ready = self._ready / recording.key
        if ready.exists():
            ready.rmdir()


def _make_own(folder: Path, mode: int = 0o777) -> None:
    """Make one of the folders of serve-dir, unless something else has its name."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=mode)
        sync(folder.parent)
    kind = folder.lstat().st_mode
    if not stat.S_ISDIR(kind):
        found = "a link" if stat.S_ISLNK(kind) else "a file"
        raise EnvironmentNotFitError(f"{folder}: expected a folder of serve-dir's, found {found}; move it away")


def _write(path: Path, line: str) -> None:
    """Put a line into a file and onto the disk; a link that somebody has planted under a name is not followed."""
    partial = path.with_name(f".{path.name}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)


def _state(status: os.stat_result) -> _State:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _truncated(name: str) -> tuple[str, str]:
    """Return stem and suffix of a name, each cut to what leaves room for a hash and more suffixes."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - of a name, not of a path
    cut = [
        text if len(data := os.fsencode(text)) <= limit else data[:limit].decode("utf-8", "ignore")
        for text, limit in ((stem, _STEM_BYTES), (suffix, _SUFFIX_BYTES))
    ]
    return cut[0], cut[1]
