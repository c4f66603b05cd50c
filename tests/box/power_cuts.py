"""What a power cut may leave of a command: its changes to the disk are recorded, and replayed in every legal order.

Recorded are the file system's operations of the real command, by Python's audit hooks, and its fsyncs. After a cut, an
operation on the entries of a folder is certain to be there only if that folder was synced after it, and what was
written to a file only if that file was. Of all others any may be there and any may be missing, in any combination, and
of a file's bytes nothing, half, or zeros in their place. That is less than ext4, XFS and Btrfs promise. As there, a
rename is atomic, and one that is on the disk has those of the same file or folder before it there, too. This is the
method of ALICE (Pillai et al., OSDI 2014), for the calls that are used here.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import random
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

ROOT = 0  # the number of the watched folder
ALL_SUBSETS = 6  # of up to so many uncertain operations every subset is tried
LINKED = 2**16  # larger files are never written in place, and are links to one copy here
VARIANTS = ("whole", "empty", "half", "zeros")


@cache
def sha256(content: bytes) -> str:
    """Return the hash of a content, computed once."""
    return hashlib.sha256(content).hexdigest()


@dataclass
class Operation:
    """`node` is the number of what it is about; folders are numbers, too. `content` is what was written."""

    kind: str
    node: int
    folder: int = -1
    name: str = ""
    source: int = -1
    source_name: str = ""
    content: bytes = b""

    @cached_property
    def shown(self) -> dict[str, bytes]:
        """What of `content` may be on the disk."""
        whole = self.content
        return dict(zip(VARIANTS, (whole, b"", whole[: len(whole) // 2], bytes(len(whole))), strict=True))


@dataclass
class Disk:
    """Folders: number to entries; files: number to content."""

    folders: dict[int, dict[str, int]] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)

    def apply(self, operation: Operation, variant: str = "whole") -> None:
        """Change the disk as an operation does, where what it needs is there."""
        node, entries = operation.node, self.folders.get(operation.folder, {})
        match operation.kind:
            case "create" | "link":
                self.files.setdefault(node, b"")
                entries[operation.name] = node
            case "mkdir":
                self.folders.setdefault(node, {})
                entries[operation.name] = node
            case "remove":
                if entries.get(operation.name) == node:
                    del entries[operation.name]
            case "rename":
                source = self.folders.get(operation.source, {})
                if source.get(operation.source_name) == node:
                    del source[operation.source_name]
                entries[operation.name] = node
            case "write":
                self.files[node] = operation.shown[variant]

    def copy(self) -> Disk:
        """Return a copy; contents are shared."""
        return Disk({number: dict(entries) for number, entries in self.folders.items()}, dict(self.files))

    def tree(self, folder: int = ROOT, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield path and number of everything that can be reached."""
        for name, node in sorted(self.folders[folder].items()):
            yield prefix + name, node
            if node in self.folders:
                yield from self.tree(node, f"{prefix}{name}/")

    def digest(self) -> bytes:
        """Return what tells two disks apart."""
        total = hashlib.sha256()
        for path, node in self.tree():
            total.update(f"{path}\0{node}\0".encode("utf-8", "surrogateescape"))
            if node in self.files:
                total.update(sha256(self.files[node]).encode())
        return total.digest()

    def write(self, target: Path, cache: Path) -> None:
        """Lay it out as real files."""
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        written: dict[int, Path] = {}
        for path, node in self.tree():
            place = target / path
            if node in self.folders:
                place.mkdir()
            elif node in written:
                place.hardlink_to(written[node])
            elif len(self.files[node]) > LINKED:
                kept = cache / f"{node}-{sha256(self.files[node])}"
                if not kept.exists():
                    kept.write_bytes(self.files[node])
                place.hardlink_to(kept)
            else:
                place.write_bytes(self.files[node])
            written[node] = place


class _Recorder:
    """Watches the operations below a folder, in this process; an audit hook cannot be taken back."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.disk = Disk({ROOT: {}})
        self.operations: list[Operation] = []
        self._numbers: dict[int, int] = {root.stat().st_ino: ROOT}
        self._count = itertools.count(1)
        self._pending: Callable[[], None] | None = None
        self._unsynced: dict[int, tuple[Operation, str]] = {}
        self._silent = False
        for folder, _, names in os.walk(root):
            self._snapshot(Path(folder), names)
        self._fsync = os.fsync
        os.fsync = self._synced
        sys.addaudithook(self._hear)

    def end(self) -> list[Operation]:
        """Return the operations."""
        self._settle()
        self._silent = True
        for node in list(self._unsynced):
            self._read(node)
        os.fsync = self._fsync
        return self.operations

    def _snapshot(self, folder: Path, names: list[str]) -> None:
        number = self._numbers[folder.stat().st_ino]
        entries = self.disk.folders.setdefault(number, {})
        for path in folder.iterdir():
            inode = path.lstat().st_ino
            node = self._numbers.setdefault(inode, next(self._count))
            entries[path.name] = node
            if path.name in names:
                self.disk.files[node] = path.read_bytes()

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        known = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir"}
        if self._silent or event not in known:
            return
        self._silent = True
        try:
            self._settle()
            self._pending = self._expected(event, arguments)
        finally:
            self._silent = False

    def _settle(self) -> None:
        """Note what the operation before has done, now that it is over."""
        silent, self._silent = self._silent, True
        if self._pending:
            self._pending()
        self._pending, self._silent = None, silent

    def _expected(self, event: str, arguments: tuple[Any, ...]) -> Callable[[], None] | None:
        if event == "open":
            path, flags = arguments[0], arguments[2]
            if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return None
            return self._opened(self._inside(path, -1), flags)
        places = {"os.rename": (2, 3), "os.link": (2, 3), "os.mkdir": (2,), "os.remove": (1,), "os.rmdir": (1,)}[event]
        paths = [self._inside(arguments[at], arguments[place]) for at, place in enumerate(places)]
        if event in {"os.rename", "os.link"}:
            return self._moved(event, *paths)
        return self._changed(event, *paths)

    def _opened(self, path: str | None, flags: int) -> Callable[[], None] | None:
        if path is None:
            return None
        before = self._inode(path)

        def after() -> None:
            inode = self._inode(path)
            if inode is None:
                return
            if before != inode:
                self._numbers[inode] = next(self._count)
                self._note("create", path, self._numbers[inode])
            if before != inode or flags & os.O_TRUNC:
                node = self._numbers[inode]
                self.operations.append(Operation("write", node))
                self._unsynced[node] = (self.operations[-1], path)

        return after

    def _moved(self, event: str, source: str | None, target: str | None) -> Callable[[], None] | None:
        if source is None and target is None:
            return None
        assert source is not None, "nothing comes from outside"
        assert target is not None, "nothing leaves"
        inode = self._inode(source)
        folder = self._parent(source)

        def after() -> None:
            if inode is None or self._inode(target) != inode:
                return
            node = self._numbers[inode]
            self._read(node)
            kind = event.removeprefix("os.")
            self._note(kind, target, node)
            self.operations[-1].source, self.operations[-1].source_name = folder, Path(source).name

        return after

    def _changed(self, event: str, path: str | None) -> Callable[[], None] | None:
        if path is None:
            return None
        before = self._inode(path)
        folder = self._parent(path)
        if before is not None:
            self._read(self._numbers[before])

        def after() -> None:
            now = self._inode(path)
            if event == "os.mkdir" and before is None and now is not None:
                self._numbers[now] = next(self._count)
                self._note("mkdir", path, self._numbers[now])
            elif event != "os.mkdir" and before is not None and now != before:
                self.operations.append(Operation("remove", self._numbers[before], folder, Path(path).name))

        return after

    def _note(self, kind: str, path: str, node: int) -> None:
        self.operations.append(Operation(kind, node, self._parent(path), Path(path).name))

    def _read(self, node: int) -> None:
        """Complete what was written to a file, as far as it is there now; the last reading counts."""
        if node in self._unsynced:
            operation, path = self._unsynced[node]
            inode = self._inode(path)
            if inode is not None and self._numbers.get(inode) == node:
                operation.content = Path(path).read_bytes()

    def _synced(self, descriptor: int) -> None:
        self._silent = True
        self._settle()
        status = os.fstat(descriptor)
        node = self._numbers.get(status.st_ino)
        if node is not None:
            if node in self._unsynced and stat.S_ISREG(status.st_mode):
                operation, _ = self._unsynced.pop(node)
                operation.content = Path(f"/proc/self/fd/{descriptor}").read_bytes()
            self.operations.append(Operation("sync", node))
        self._silent = False
        self._fsync(descriptor)

    def _inside(self, path: Any, descriptor: int) -> str | None:
        base = Path(f"/proc/self/fd/{descriptor}").readlink() if descriptor >= 0 else Path.cwd()
        text = str(base / os.fsdecode(path))
        return text if text.startswith(f"{self.root}/") else None

    def _parent(self, path: str) -> int:
        inode = self._inode(str(Path(path).parent))
        return self._numbers[inode] if inode is not None else -1

    @staticmethod
    def _inode(path: str) -> int | None:
        try:
            return os.lstat(path).st_ino
        except OSError:
            return None


@dataclass(frozen=True)
class Recorded:
    """The disk before a command, and its operations."""

    before: Disk
    operations: list[Operation]


def record(root: Path, act: Callable[[], object], notes: Path) -> Recorded:
    """Run `act` in a child process and return what it did below `root`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            recorder = _Recorder(root)
            act()
            with notes.open("wb") as file:
                pickle.dump(Recorded(recorder.disk, recorder.end()), file)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, "the command that is recorded succeeds"
    recorded: Recorded = pickle.loads(notes.read_bytes())
    return recorded


def _certain(operations: list[Operation]) -> set[int]:
    """Return the numbers of the operations that a cut after the last one leaves on the disk in any case."""
    synced: set[int] = set()
    certain = set()
    for at in reversed(range(len(operations))):
        operation = operations[at]
        if operation.kind == "sync":
            synced.add(operation.node)
        elif (operation.node if operation.kind == "write" else operation.folder) in synced:
            certain.add(at)
    return certain


def _with_earlier_moves(operations: list[Operation], there: set[int]) -> set[int]:
    """Return the operations that are there with those that they imply: a rename has those of its node before it."""
    moved: set[int] = set()
    found = set(there)
    for at in reversed(range(len(operations))):
        operation = operations[at]
        if operation.kind in {"rename", "mkdir"} and operation.node in moved:
            found.add(at)
        if operation.kind == "rename" and at in found:
            moved.add(operation.node)
    return found


def _choices(uncertain: list[int], chance: random.Random) -> Iterator[frozenset[int]]:
    """Yield subsets of the uncertain operations: all, or where they are too many those that are likely to hurt."""
    if len(uncertain) <= ALL_SUBSETS:
        for count in range(len(uncertain) + 1):
            yield from map(frozenset, itertools.combinations(uncertain, count))
        return
    everything = frozenset(uncertain)
    for at, number in enumerate(uncertain):
        yield from (everything - {number}, frozenset({number}), frozenset(uncertain[:at]), frozenset(uncertain[at:]))
    for _ in range(32):
        yield frozenset(number for number in uncertain if chance.random() < 0.5)


def cuts(recorded: Recorded, every: int = 1, seed: int = 0) -> Iterator[tuple[bool, Disk]]:
    """Yield every disk that a cut may leave, once, and whether the command had come to its end before the cut.

    `every`: look at a cut after every so many operations only, and at the end.
    """
    chance = random.Random(seed)
    seen = set()
    for point in range(len(recorded.operations) % every, len(recorded.operations) + 1, every):
        done = recorded.operations[:point]
        ended = point == len(recorded.operations)
        certain = _certain(done)
        uncertain = [at for at, o in enumerate(done) if at not in certain and o.kind not in {"sync", "write"}]
        unwritten = {at for at, o in enumerate(done) if at not in certain and o.kind == "write"}
        for chosen in _choices(uncertain, chance):
            for variant in VARIANTS if unwritten else VARIANTS[:1]:
                disk = recorded.before.copy()
                there = _with_earlier_moves(done, certain | chosen)
                for at, operation in enumerate(done):
                    if at in there or operation.kind == "write":
                        disk.apply(operation, variant if at in unwritten else "whole")
                if (mark := (ended, disk.digest())) not in seen:
                    seen.add(mark)
                    yield ended, disk


def without_syncs(recorded: Recorded, of: Callable[[Operation], bool] = lambda _: True) -> Recorded:
    """Return what a command would have done that leaves syncs out: the control, in which damage must show."""
    kept = [operation for operation in recorded.operations if operation.kind != "sync" or not of(operation)]
    return Recorded(recorded.before, kept)


def contents(disk: Disk) -> Mapping[str, bytes]:
    """Return the files by path."""
    return {path: disk.files[node] for path, node in disk.tree() if node in disk.files}
