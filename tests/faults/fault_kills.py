"""kill -9 at random points of the real commands: the old state or the new one, and the next command works."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from fault_world import MODEL, SAMPLES, Row, World, check_box, check_tidy
from real_command import Command, done, preload

from runtime.box.root import Box

Arguments = tuple[str | Path, ...]
REPOSITORY = Path(__file__).resolve().parents[2]
POINTS = REPOSITORY / "tests" / "box" / "kill_points.py"
STATES = ("old state", "new state")
# A command that was killed is given again, to its end, after every fifth kill: it costs as much as the command.
AGAIN_EVERY = 5


class Victim(ABC):
    """A command that is killed. `prepare` sets the scene, `check` looks at it and returns what it is."""

    name: str

    def __init__(self, world: World) -> None:
        self.world = world

    @abstractmethod
    def prepare(self) -> Arguments: ...

    @abstractmethod
    def check(self, arguments: Arguments, *, again: bool) -> Counter[str]: ...


class BoxVictim(Victim):
    """A command that changes a box."""

    def __init__(self, world: World, name: str, original: Path, command: Callable[[Path], Arguments]) -> None:
        super().__init__(world)
        self.name, self._original, self._command = name, original, command
        root = world.box("reference", original)
        before = (root / "state.json").read_bytes()
        preload(*command(root))
        self._states = (before, (root / "state.json").read_bytes())
        assert len(set(self._states)) == 2

    def prepare(self) -> Arguments:
        return self._command(self.world.box("killed", self._original))

    def check(self, arguments: Arguments, *, again: bool) -> Counter[str]:
        root = self.world.folder / "killed"
        found = check_box(root, self._states)
        done("gc", "--root", root)
        check_tidy(root)
        if again:
            done("status", "--root", root)
            done("list", "--root", root)
        if again and found == 0:
            done(*arguments)
            assert check_box(root, self._states) == 1
            check_tidy(root)
        return Counter([STATES[found]])


class FreezeVictim(Victim):
    """freeze over an older bundle of the same name."""

    name = "freeze"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._folder = world.folder / "frozen"
        self._out = self._folder / "model.atlas"
        self._contents = (world.old.read_bytes(), world.new.read_bytes())

    def prepare(self) -> Arguments:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        shutil.copyfile(self.world.old, self._out)
        return self.world.freeze("1.1.0", self._out)

    def check(self, arguments: Arguments, *, again: bool) -> Counter[str]:
        data = self._out.read_bytes()
        assert data in self._contents, f"neither the old nor the new bundle, but {len(data)} bytes"
        assert {path.name for path in self._folder.iterdir()} <= {self._out.name, f".{self._out.name}.partial"}
        if again:
            done("inspect", self._out, "--public-key", self.world.public_key)
            done(*arguments)
            assert self._out.read_bytes() == self._contents[1]
            assert [path.name for path in self._folder.iterdir()] == [self._out.name]
        return Counter([STATES[self._contents.index(data)]])


class ServeVictim(Victim):
    """serve-dir with three recordings: each lies in one place, has no result or the whole one, and gets it at last."""

    name = "serve-dir"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._inbox, self._out = world.folder / "in", world.folder / "out"
        self._recordings = {path.name: path.read_bytes() for path in sorted(SAMPLES.glob("sed_*.flac"))}
        preload(*self.prepare())
        self._results = self._visible()
        assert len(self._results) == len(self._recordings) == 3

    def prepare(self) -> Arguments:
        for folder in (self._inbox, self._out):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        for name, data in self._recordings.items():
            (self._inbox / name).write_bytes(data)
        options = ("--root", self.world.installed, "--format", "json", "--interval", "0.01", "--threads", "1", "--once")
        return ("serve-dir", self._inbox, self._out, MODEL, *options)

    def check(self, arguments: Arguments, *, again: bool) -> Counter[str]:
        del again  # always: what is lost shows only then
        visible = self._visible()
        assert all(self._results.get(name) == result for name, result in visible.items()), "a result is not whole"
        assert self._inputs() == self._expected_inputs(), "a recording is lost or doubled"
        done(*arguments)
        assert self._visible() == self._results
        assert sorted(path.name for path in self._out.iterdir() if path.name != ".atlasport") == sorted(self._results)
        assert self._inputs(self._inbox / "done") == self._expected_inputs()
        left = [
            path for root in (self._inbox, self._out) for path in (root / ".atlasport").rglob("*") if path.is_file()
        ]
        assert [path.name for path in left if path.name != "lock"] == []
        counts = {"recordings not handled yet": len(self._results) - len(visible), "recordings handled": len(visible)}
        return Counter({outcome: count for outcome, count in counts.items() if count})

    def _visible(self) -> dict[str, Any]:
        """What a reader of OUT finds, but for times."""
        return {
            path.name: {key: value for key, value in json.loads(path.read_text()).items() if key != "timings"}
            for path in self._out.glob("*.json")
        }

    def _inputs(self, folder: Path | None = None) -> list[str]:
        paths = (folder or self._inbox).rglob("*")
        return sorted(sha256(path.read_bytes()).hexdigest() for path in paths if path.suffix == ".flac")

    def _expected_inputs(self) -> list[str]:
        return sorted(sha256(data).hexdigest() for data in self._recordings.values())


def victims(world: World) -> list[Victim]:
    """All commands that are killed."""

    def with_both(root: Path) -> Arguments:
        return ("activate", MODEL, "1.1.0", "--root", root)

    both = world.box("both")
    done(*world.install(world.new, both))
    return [
        FreezeVictim(world),
        BoxVictim(world, "install", world.installed, lambda root: world.install(world.new, root)),
        BoxVictim(world, "activate", both, with_both),
        BoxVictim(world, "rollback", world.switched, lambda root: ("rollback", MODEL, "--root", root)),
        ServeVictim(world),
    ]


def kill(victim: Victim, kills: int, chance: random.Random) -> Row:
    """Kill a command `kills` times, at times drawn evenly over what it takes; those that were too late do not count."""
    row = Row(f"kill -9 of `{victim.name}` at a random time")
    taken = [done(*victim.prepare()).seconds for _ in range(3)]
    for _ in range(3 * kills):
        if row.tried == kills:
            break
        arguments = victim.prepare()
        command = Command(*arguments)
        after_s = chance.uniform(0, 1.1 * sorted(taken)[1])
        command.kill(after_s)
        if not command.wait().killed:
            continue
        try:
            found = victim.check(arguments, again=row.tried % AGAIN_EVERY == 0)
        except Exception as error:  # noqa: BLE001 - whatever does not open is a violation
            row.violated(f"after {after_s:.3f} s: {type(error).__name__}: {error}")
        else:
            row.tried += 1
            row.outcomes.update(found)
    return row


# Commands of tests/box/kill_points.py.
CHANGING = ("install", "activate", "rollback", "remove", "gc")


def at_every_change(world: World, name: str) -> Row:
    """Kill a command before each of its changes to the disk, one after the other: no gap is too short to be hit."""
    row = Row(f"kill -9 of `{name}` before each of its changes to the disk")
    root = world.box("points", world.switched if name in {"rollback", "remove"} else world.installed)
    arguments: list[Path] = []
    if name == "activate":
        done(*world.install(world.new, root))
    if name == "install":  # of all blobs, onto an empty box
        shutil.rmtree(root)
        root.mkdir()
        with Box(root).locked(create=True) as state:
            Box(root).switch(state)
        arguments = [world.new]
    if name == "gc":
        for number in range(6):
            (root / "blobs" / f"{number:064x}").write_bytes(b"left over")
    process = subprocess.run(
        [sys.executable, POINTS, root, name, *arguments], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    if process.returncode:
        row.violated(process.stderr.strip().rpartition("\n")[2])
    else:
        row.tried = int(process.stdout)
        row.outcomes["old or new state"] = row.tried
    return row
