"""Commands whose operations are recorded, and what must hold on every disk that a power cut may leave of them."""

from __future__ import annotations

import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

from power_cuts import Disk, Recorded, contents, record, sha256

from runtime.box.inbox import Inbox
from runtime.box.install import Trust, install
from runtime.box.keep import gc, remove
from runtime.box.root import Box
from runtime.box.state import BoxState
from runtime.box.switch import activate, rollback
from runtime.errors import InputError

MODEL = "sed-pocket"
ANY = Trust(allow_unsigned=True)
COMMANDS = ("first install", "install", "activate", "rollback", "remove", "gc", "repair")
SUFFIXES = ("json", "srt")


class Cut(ABC):
    """A recorded command, and what must hold after a cut."""

    recorded: Recorded

    @abstractmethod
    def check(self, disk: Disk, *, ended: bool, again: bool) -> None:
        """Check a disk; `again`: give the command again, too."""


def violations(cut: Cut, disks: Iterable[tuple[bool, Disk]], *, again_every: int) -> list[str]:
    """Return what does not hold, a line for each disk."""
    return [
        found
        for number, (ended, disk) in enumerate(disks)
        if (found := _violation(cut, disk, ended=ended, again=bool(again_every) and number % again_every == 0))
    ]


def _violation(cut: Cut, disk: Disk, *, ended: bool, again: bool) -> str:
    try:
        cut.check(disk, ended=ended, again=again)
    except Exception as error:  # noqa: BLE001 - whatever it is
        return f"{type(error).__name__}: {error}"[:300]
    return ""


def scene(name: str, root: Path, bundles: tuple[Path, Path]) -> Callable[[], object]:
    """Set a scene in `root` and return the command that is recorded in it."""
    act = command(name, root / "box", bundles)
    box, (old, new) = Box(root / "box"), bundles
    if name == "first install":
        return act
    install(old, box.path, ANY)
    activate(box.path, MODEL, "1.0.0")
    if name == "install":
        return act
    install(new, box.path, ANY)
    if name in {"rollback", "remove"}:
        with box.locked() as state:
            model = state.models[MODEL].model_copy(update={"active": "1.1.0", "previous": "1.0.0"})
            box.switch(state.with_model(MODEL, model))
    for number in range(4 if name == "gc" else 0):
        box.blob(f"{number:064x}").write_bytes(b"left over")
    if name == "repair":
        blob = box.version_folder(MODEL, "1.0.0") / "artifact" / "golden.safetensors"
        blob.chmod(0o644)
        blob.write_bytes(b"damaged")
    return act


def command(name: str, box: Path, bundles: tuple[Path, Path]) -> Callable[[], object]:
    """Return a command as a function without arguments."""
    old, new = bundles
    return {
        "first install": lambda: install(old, box, ANY),
        "install": lambda: install(new, box, ANY),
        "activate": lambda: activate(box, MODEL, "1.1.0"),
        "rollback": lambda: rollback(box, MODEL),
        "remove": lambda: remove(box, MODEL, "1.0.0"),
        "gc": lambda: gc(box),
        "repair": lambda: install(old, box, ANY),
    }[name]


class BoxCut(Cut):
    """A command that changes a box: the old box or the new one; once it has ended, the new one."""

    def __init__(self, name: str, folder: Path, bundles: tuple[Path, Path]) -> None:
        self._name, self._target, self._cache = name, folder / "disk", folder / "cache"
        self._cache.mkdir()
        root = folder / "watched"
        root.mkdir()
        act = scene(name, root, bundles)
        self._old = _state(root / "box")
        self.recorded = record(root, act, folder / "notes")
        self._new = _state(root / "box")
        self._again = command(name, self._target / "box", bundles)

    def check(self, disk: Disk, *, ended: bool, again: bool) -> None:
        """Everything that is listed is whole; the next command tidies up; the same one again does it."""
        disk.write(self._target, self._cache)
        box = Box(self._target / "box")
        state = _state(box.path)
        assert state in ((self._new,) if ended else (self._old, self._new)), state
        damaged = self._name == "repair" and not ended
        self._check_versions(disk, state or BoxState(), damaged=damaged)
        if state is not None and not damaged:  # where a version is damaged gc does nothing
            gc(box.path)
            assert not box.staging.exists()
            assert box.strays(state) == []
            manifests = [box.manifest(state, *version) for version in state.listed()]
            used = {entry.sha256 for manifest in manifests for entry in manifest.files.values()}
            assert {path.name for path in box.blobs.iterdir()} == used
        if again and (state == self._old or self._name in {"gc", "repair"}):
            self._again()
            assert _state(box.path) == self._new
            gc(box.path)

    @staticmethod
    def _check_versions(disk: Disk, state: BoxState, *, damaged: bool) -> None:
        """By the replayed disk alone: every file is the blob of the right content."""
        files, nodes = contents(disk), dict(disk.tree())
        for model, version in state.listed():
            folder = f"box/models/{model}/{version}"
            assert sha256(files[f"{folder}/atlas.json"]) == state.installed(model, version).manifest_sha256
            for path, entry in json.loads(files[f"{folder}/atlas.json"])["files"].items():
                content = files[f"{folder}/{path}"]
                assert sha256(content) == entry["sha256"] or (damaged and content == b"damaged"), path
                assert damaged or nodes[f"{folder}/{path}"] == nodes[f"box/blobs/{entry['sha256']}"], path


def _state(box: Path) -> BoxState | None:
    try:
        return Box(box).state()
    except InputError:
        return None


class ServeCut(Cut):
    """Serving two recordings, one of them bad: none is lost, no result is half there, each has one in the end."""

    def __init__(self, folder: Path) -> None:
        self._target, self._cache = folder / "disk", folder / "cache"
        self._cache.mkdir()
        root = folder / "watched"
        (root / "in").mkdir(parents=True)
        self._recordings = {name: secrets.token_bytes(100) for name in ("good.wav", "bad.wav")}
        for name, content in self._recordings.items():
            (root / "in" / name).write_bytes(content)
        self.recorded = record(root, lambda: self._serve(root), folder / "notes")

    def check(self, disk: Disk, *, ended: bool, again: bool) -> None:
        """What lies in IN and OUT, at once and after serving again."""
        del again  # always
        files = contents(disk)
        kept = [content for content in files.values() if content in self._recordings.values()]
        assert sorted(kept) == sorted(self._recordings.values()), "a recording is lost or doubled"
        seen = {path: content for path, content in files.items() if path.startswith("out/good")}
        assert all(content == content[:16] * 100 for content in seen.values()), "a result is half there"
        lines = [content for path, content in files.items() if path.startswith("in/failed/bad") and ".error" in path]
        assert all(line == b"no audio\n" for line in lines), "a reason is half there"
        if ended:
            assert len(seen) == len(SUFFIXES), "a result that was promised is gone"
            assert len(lines) == 1, "a reason that was promised is gone"
        disk.write(self._target, self._cache)
        self._serve(self._target)
        source, out = self._target / "in", self._target / "out"
        results = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        assert sorted(name.rpartition(".")[2] for name in results) == sorted(SUFFIXES)
        assert len(set(results.values())) == 1, "the results of one recording come from two recognitions"
        assert not ended or set(results.values()) == set(seen.values()), "a recording was done again"
        done, failed = ([path.name for path in (source / name).iterdir()] for name in ("done", "failed"))
        assert [name.partition(".")[0] for name in done] == ["good"]
        assert [name.partition(".")[0] for name in failed if name[0] != "."] == ["bad", "bad"]
        assert not list((source / ".atlasport" / "claimed").iterdir())

    @staticmethod
    def _serve(root: Path) -> None:
        inbox = Inbox(root / "in", root / "out", SUFFIXES)
        with inbox.open():
            inbox.look()
            for name in inbox.look():
                inbox.claim(name)
            for recording in inbox.pending():
                assert inbox.begin(recording)
                token = secrets.token_hex(8)

                def write(folder: Path, stem: str = recording.stem, token: str = token) -> None:
                    for suffix in SUFFIXES:
                        (folder / f"{stem}.{suffix}").write_text(token * 100)

                if recording.name.startswith("bad"):
                    inbox.fail(recording, "no audio")
                else:
                    inbox.finish(recording, write)
