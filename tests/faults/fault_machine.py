"""Machines that fail: full and read-only disks, no permission, clocks that go backwards, two commands at once."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fault_bundles import refused
from fault_world import MIB, MODEL, SAMPLES, Row, World, check_box, check_tidy, digest, refusal
from real_command import Command, done, run

from runtime.box.root import Box

UNFIT = (3,)
NOBODY = 65534
EPOCH, FAR = 0, 4_102_444_800  # 1970 and 2100


@contextmanager
def small_disk(world: World, size: int = 64 * MIB) -> Iterator[Path]:
    """A file system of its own; only root can mount one."""
    folder = world.folder / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


@contextmanager
def filled(disk: Path, room: int) -> Iterator[None]:
    """A disk on which only `room` bytes are free."""
    other = disk / "other"
    with other.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - room)
    try:
        yield
    finally:
        other.unlink()


def full_freeze(world: World, rooms: Sequence[int]) -> Row:
    """The bundle before stays."""
    row = Row("disk full, `freeze`")
    with small_disk(world) as disk:
        target = disk / "frozen"
        target.mkdir()
        shutil.copyfile(world.old, target / "model.atlas")
        for room in rooms:
            with filled(disk, room):
                command = world.freeze("1.1.0", target / "model.atlas")
                refused(row, target, f"{room} bytes free", *command, codes=UNFIT)
    return row


def full_install(world: World, rooms: Sequence[int]) -> Row:
    """Once as it is, and once with something else filling the disk after install has looked at it."""
    row = Row("disk full, `install`")
    with small_disk(world) as disk:
        root = disk / "box"
        for room in rooms:
            for seen in (False, True):
                shutil.rmtree(root, ignore_errors=True)
                root.mkdir()
                with Box(root).locked(create=True) as state:
                    Box(root).switch(state)
                with filled(disk, room):
                    before = digest(root)
                    outcome = Command(*world.install(world.new, root), before=_roomy if seen else None).wait()
                    try:
                        said = refusal(outcome, UNFIT)
                        assert digest(root) == before, "the box has changed"
                    except AssertionError as error:
                        row.violated(f"{room} bytes free: {error}")
                    else:
                        row.note(said)
        done(*world.install(world.new, root))
    return row


def _roomy() -> None:
    """The disk had room when install looked."""
    usage = shutil.disk_usage("/")
    shutil.disk_usage = lambda _: usage._replace(free=2**40)


def full_serve(world: World, rooms: Sequence[int]) -> Row:
    """No recording is lost: with room again, each gets its result."""
    row = Row("disk full, `serve-dir`")
    with small_disk(world, 8 * MIB) as disk:
        for room in rooms:
            inbox, out = world.folder / "full-in", disk / "out"
            for folder in (inbox, out):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            for path in SAMPLES.glob("sed_*.flac"):
                shutil.copy(path, inbox)
            command = _serve(world, inbox, out)
            try:
                with filled(disk, room):
                    outcome = run(*command)
                    # Before that it says what it has done, a line each.
                    last = replace(outcome, err=outcome.err.strip().rpartition("\n")[2])
                    said = "all written" if outcome.code == 0 else refusal(last, UNFIT)
                    for path in out.glob("*.json"):
                        json.loads(path.read_text())
                done(*command)
                assert len(list(out.glob("*.json"))) == len(list((inbox / "done").iterdir())) == 3
            except (AssertionError, ValueError) as error:
                row.violated(f"{room} bytes free: {error}")
            else:
                row.note(f"{said}; with room again all are handled")
    return row


def _serve(world: World, inbox: Path, out: Path) -> tuple[str | Path, ...]:
    options = ("--root", world.installed, "--format", "json", "--interval", "0.01", "--threads", "1", "--once")
    return ("serve-dir", inbox, out, MODEL, *options)


def _changing(world: World, folder: Path) -> list[tuple[str | Path, ...]]:
    """Every command that changes something, on a folder with a box, an inbox and a bundle."""
    box = folder / "box"
    return [
        world.install(world.new, box),
        world.install(world.new, folder / "another"),
        ("activate", MODEL, "1.0.0", "--root", box),
        ("rollback", MODEL, "--root", box),
        ("remove", MODEL, "1.0.0", "--root", box),
        ("gc", "--root", box),
        world.freeze("1.1.0", folder / "old.atlas"),
        _serve(world, folder / "in", folder / "out"),
        ("keygen", folder / "keys"),
    ]


def _lay_out(world: World, folder: Path) -> None:
    subprocess.run(["cp", "-a", world.switched, folder / "box"], check=True)
    shutil.copyfile(world.old, folder / "old.atlas")
    for name in ("in", "out"):
        (folder / name).mkdir()
    shutil.copy(SAMPLES / "sed_1.flac", folder / "in")


def read_only(world: World) -> Row:
    """Whoever only looks may; nothing else begins."""
    row = Row("read-only file system, every command that writes")
    with small_disk(world) as disk:
        _lay_out(world, disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for command in _changing(world, disk):
            refused(row, disk, str(command[0]), *command, codes=UNFIT)
        for command in ("status", "list"):
            _looks(row, command, run(command, "--root", disk / "box").code)
    return row


def no_permission(world: World) -> Row:
    """As another user."""
    row = Row("no permission, every command that writes")
    folder = world.folder / "foreign"
    folder.mkdir()
    _lay_out(world, folder)
    for command in _changing(world, folder):
        before = digest(folder)
        # Of the key only root may know; freeze is to fail at what it writes.
        arguments = [argument for argument in command if argument not in ("--key", world.key)]
        outcome = Command(*arguments, before=lambda: os.setuid(NOBODY)).wait()
        try:
            said = refusal(outcome, UNFIT)
            assert digest(folder) == before, "something has changed"
        except AssertionError as error:
            row.violated(f"{command[0]}: {error}")
        else:
            row.note(said)
    for name in ("status", "list"):
        looking = Command(name, "--root", folder / "box", before=lambda: os.setuid(NOBODY))
        _looks(row, name, looking.wait().code)
    return row


def _looks(row: Row, command: str, code: int) -> None:
    if code == 0:
        row.note("reading commands work")
    else:
        row.violated(f"{command}: exit {code}")


def clock(world: World) -> Row:
    """Every file is of 1970, or of 2100 after the clock went back: nothing depends on it."""
    row = Row("clock far behind or ahead of the files'")
    for seconds in (EPOCH, FAR):
        root = world.box("clock")
        steps: list[tuple[str | Path, ...]] = [
            world.install(world.new, root, "--activate"),
            ("status", "--root", root),
            ("rollback", MODEL, "--root", root),
            ("remove", MODEL, "1.1.0", "--root", root),
            ("gc", "--root", root),
            ("status", "--read-all", "--root", root),
        ]
        for step in steps:
            for path in (root, *root.rglob("*")):
                os.utime(path, (seconds, seconds))
            outcome = run(*step)
            if outcome.code == 0:
                row.note("works")
            else:
                row.violated(f"{step[0]} at {seconds}: exit {outcome.code}: {outcome.err}")
    return row


def at_once(world: World, pairs: int, chance: random.Random) -> Row:
    """Two installers, of one bundle or of two, on an empty box or one with a version; and a lock that stays."""
    row = Row("two installers at once")
    for number in range(pairs):
        root = world.folder / "both-at-once"
        shutil.rmtree(root, ignore_errors=True)
        bundles = (world.new, world.new) if number % 2 else (world.old, world.new)
        commands = []
        for bundle in bundles:
            commands.append(Command(*world.install(bundle, root, "--allow-downgrade")))
            time.sleep(chance.uniform(0, 0.2))
        outcomes = [command.wait() for command in commands]
        try:
            for outcome in outcomes:
                assert outcome.code in (0, *UNFIT), outcome.err
                if outcome.code:
                    refusal(outcome, UNFIT)
            assert any(outcome.code == 0 for outcome in outcomes)
            state = Box(root).state()
            expected = {"1.1.0"} if number % 2 else {"1.0.0", "1.1.0"}
            assert set(state.models[MODEL].installed) <= expected
            assert len(state.models[MODEL].installed) == len(
                {bundle for bundle, outcome in zip(bundles, outcomes, strict=True) if outcome.code == 0}
            )
            check_box(root, [(root / "state.json").read_bytes()])
            check_tidy(root)
        except (AssertionError, OSError) as error:
            row.violated(f"pair {number}: {error}")
        else:
            both = all(outcome.code == 0 for outcome in outcomes)
            row.note("both one after the other" if both else "one, the other refused, exit 3")
    return row


def lock_held(world: World) -> Row:
    """A command that does not end holds the lock."""
    from filelock import FileLock

    row = Row("lock held by another command")
    root = world.box("locked", world.switched)
    with FileLock(root / "lock"):
        for command in (
            world.install(world.new, root),
            ("activate", MODEL, "1.1.0", "--root", root),
            ("rollback", MODEL, "--root", root),
            ("gc", "--root", root),
        ):
            refused(row, root, str(command[0]), *command, codes=UNFIT)
        for name in ("status", "list"):
            _looks(row, name, run(name, "--root", root).code)
    return row
