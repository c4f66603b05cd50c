"""Boxes and served folders in a bad week: foreign files, flipped bits, damaged blobs, old keys, deadly recordings."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fault_bundles import refused
from fault_world import MODEL, SAMPLES, Row, World, digest
from real_command import Command, done, run

from runtime.bundle.archive import open_bundle, write_bundle
from runtime.bundle.signing import generate_key, sign

sys.path += [str(Path(__file__).resolve().parents[1] / "box")]

if TYPE_CHECKING:
    from fault_campaign import Extent

DAMAGED, UNFIT, BAD = (4,), (3,), (2,)
STATES = ("state.json", "state.json.copy")
PARTS = ("models", "staging", "blobs", "self-tests", "lock", "state.json")


def steps(world: World, extent: Extent, seed: int) -> list[Callable[[], Row]]:
    """Everything that is tried here."""
    return [
        lambda: foreign_folders(world),
        lambda: linked_parts(world),
        lambda: flipped_states(world, extent.truncations, random.Random(seed)),
        lambda: damaged_blobs(world),
        lambda: replaced_keys(world),
        lambda: planted(world),
        lambda: killed_readers(world, extent.rooms, random.Random(seed)),
        lambda: power_cuts(world),
    ]


def _changing(world: World, root: Path) -> list[tuple[str | Path, ...]]:
    return [
        world.install(world.new, root),
        ("activate", MODEL, "1.0.0", "--root", root),
        ("rollback", MODEL, "--root", root),
        ("remove", MODEL, "1.0.0", "--root", root),
        ("gc", "--root", root),
    ]


def foreign_folders(world: World) -> Row:
    """Somebody's folders that have the names of a box's."""
    row = Row("folder that is no box, every command that changes one")
    for name in PARTS:
        root = world.folder / "theirs"
        shutil.rmtree(root, ignore_errors=True)
        (root / name / "resnet" / "1.0.0").mkdir(parents=True)
        (root / name / "resnet" / "1.0.0" / "thesis.txt").write_text("years of work")
        for command in _changing(world, root):
            refused(row, root, f"{name}, {command[0]}", *command, codes=BAD)
    return row


def linked_parts(world: World) -> Row:
    """A part of a box is a link to somebody's files."""
    row = Row("part of a box that is a link, every command that changes one")
    for name in PARTS:
        folder = world.folder / "linked"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        root = world.box("linked/box", world.switched)
        (folder / "theirs" / "resnet" / "1.0.0").mkdir(parents=True)
        (folder / "theirs" / "resnet" / "1.0.0" / "thesis.txt").write_text("years of work")
        part = root / name
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        part.symlink_to(folder / "theirs")
        for command in _changing(world, root):
            refused(row, folder, f"{name}, {command[0]}", *command, codes=UNFIT)
    return row


def flipped_states(world: World, count: int, chance: random.Random) -> Row:
    """One bit of state.json, of its copy, of both: nothing is removed, and one of two costs nothing."""
    row = Row("one flipped bit in state.json, its copy or both, `gc`")
    root = world.box("flipped-state", world.switched)
    done("gc", "--root", root)
    whole, data = digest(root), (root / "state.json").read_bytes()
    for at in chance.choices(range(8 * len(data)), k=count):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        names = chance.choice((STATES[:1], STATES[1:], STATES))
        for name in names:
            (root / name).write_bytes(flipped)
        if names == STATES:
            refused(row, root, f"bit {at} of both", "gc", "--root", root, codes=DAMAGED)
        else:
            code = run("gc", "--root", root).code
            if code or digest(root) != whole:
                row.violated(f"bit {at} of {names[0]}: exit {code}, the box has changed")
            else:
                row.note("repaired, nothing removed")
        for name in STATES:
            (root / name).write_bytes(data)
    return row


def damaged_blobs(world: World) -> Row:
    """Each blob: versions that use it are refused until a bundle that has it is installed again, others activate."""
    row = Row("damaged blob, `activate`, then `install` of the same bundle")
    root = world.box("damaged-blob", world.switched)
    with open_bundle(world.new) as reader:
        in_new = set(reader.manifest.blobs)
    for path in sorted((root / "blobs").iterdir()):
        data = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(data[:-1])
        used = path.name in in_new
        try:
            outcome = run("activate", MODEL, "1.1.0", "--root", root)
            assert outcome.code == (4 if used else 0), outcome.err
            assert "again, which repairs it" in outcome.err or not used, outcome.err
            done(*world.install(world.new if used else world.old, root))
            assert path.read_bytes() == data, "the blob is not repaired"
            done("status", "--read-all", "--root", root)
        except AssertionError as error:
            row.violated(f"{path.name[:12]}: {error}")
        else:
            row.note("refused, exit 4, then repaired" if used else "of another version only: works, then repaired")
    return row


def replaced_keys(world: World) -> Row:
    """After --repin, versions of the old key stay where they are."""
    row = Row("key that `--repin` replaced: `activate`, `rollback`, `install`")
    root = world.box("repinned", world.switched)
    key, public = generate_key(world.folder / "second")
    with open_bundle(world.new) as reader:
        blobs = {sha256: b"".join(chunks) for sha256, chunks in reader.blobs()}
        manifest = reader.manifest.model_copy(update={"version": "1.2.0"})
    write_bundle(world.folder / "second.atlas", manifest, sign(manifest.to_bytes(), key), blobs)
    done("install", world.folder / "second.atlas", "--root", root, "--public-key", public, "--repin")
    for command in (
        ("activate", MODEL, "1.1.0"),
        ("activate", MODEL, "1.0.0", "--allow-downgrade"),
        ("rollback", MODEL),
    ):
        refused(row, root, " ".join(command), *command, "--root", root, codes=DAMAGED)
    refused(row, root, "install by the old key", *world.install(world.new, root), codes=DAMAGED)
    told = run("status", "--root", root)
    if told.code in DAMAGED and "--repin" in told.out:
        row.note("status says so, exit 4")
    else:
        row.violated(f"status: exit {told.code}: {told.out}")
    return row


def _serve(world: World, inbox: Path, out: Path) -> tuple[str | Path, ...]:
    options = ("--root", world.installed, "--format", "json", "--interval", "0.01", "--threads", "1", "--once")
    return ("serve-dir", inbox, out, MODEL, *options)


def planted(world: World) -> Row:
    """Files, links and names that somebody else leaves in IN."""
    row = Row("planted links, foreign files and odd names in IN, `serve-dir`")
    folder = world.folder / "planted"
    for name in ("done", "failed", ".atlasport"):
        for link in (False, True):
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "in").mkdir(parents=True)
            (folder / "theirs").mkdir()
            place = folder / "in" / name
            place.symlink_to(folder / "theirs") if link else place.write_text("a file")
            outcome = run(*_serve(world, folder / "in", folder / "out"))
            lines = outcome.err.strip().splitlines()
            good = outcome.code in UNFIT and len(lines) == 1 and not list((folder / "theirs").iterdir())
            row.note("refused, exit 3") if good else row.violated(f"{name}: {outcome.code}: {outcome.err}")
    for name in (b"caf\xe9.flac", b"\xff\n.flac", b"-rf.flac", b"x" * 250 + b".flac"):
        for content in ((SAMPLES / "sed_1.flac").read_bytes(), b"no audio"):
            _one(row, world, folder, os.fsdecode(name), content)
    return row


def _one(row: Row, world: World, folder: Path, name: str, content: bytes) -> None:
    """A recording under an odd name, with links where its failure would be written."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in" / "failed").mkdir(parents=True)
    secret = folder / "secret"
    secret.write_text("not yours")
    (folder / "in" / name).write_bytes(content)
    outcome = run(*_serve(world, folder / "in", folder / "out"))
    failed = [path.name for path in (folder / "in" / "failed").iterdir()]
    if failed:  # the same once more, now that the names are known
        for path in (folder / "in" / "failed").iterdir():
            path.unlink()
        for planted_name in failed:
            for prefix in ("", "."):
                (folder / "in" / "failed" / f"{prefix}{planted_name}").symlink_to(secret)
        (folder / "in" / name).write_bytes(content)
        outcome = run(*_serve(world, folder / "in", folder / "out"))
    handled = len(list((folder / "out").glob("*.json")))
    good = outcome.code == 0 and secret.read_text() == "not yours" and handled == (content != b"no audio")
    row.note("handled" if handled else "to failed/") if good else row.violated(f"{name!r}: {outcome.err}")


def killed_readers(world: World, kills: int, chance: random.Random) -> Row:
    """kill -9 of the process that reads, at random times: the command goes on, no recording is lost."""
    row = Row("kill -9 of the process that reads recordings, `serve-dir`")
    folder = world.folder / "readers"
    for _ in range(10 * kills):
        if row.tried == kills:
            break
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "in").mkdir(parents=True)
        for path in SAMPLES.glob("sed_*.flac"):
            shutil.copy(path, folder / "in")
        command = Command(*_serve(world, folder / "in", folder / "out"))
        time.sleep(chance.uniform(0.2, 1.5))
        killed = _kill_reader(command.pid)
        outcome = command.wait()
        if not killed:
            continue
        if outcome.code in UNFIT:  # at the second of silence that comes before all recordings
            done(*_serve(world, folder / "in", folder / "out"))
        handled = len(list((folder / "out").glob("*.json")))
        if outcome.code in {0, *UNFIT} and handled == 3:
            row.note("goes on, all handled" if outcome.code == 0 else "before the first recording: exit 3, then all")
        else:
            row.violated(f"exit {outcome.code}, {handled} handled: {outcome.err}")
    return row


def _kill_reader(process: int) -> bool:
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
        readers = [c for c in children if b"runtime.box.reading" in Path(f"/proc/{c}/cmdline").read_bytes()]
        for reader in readers:
            os.kill(int(reader), signal.SIGKILL)
    except OSError:
        return False
    return bool(readers)


def power_cuts(world: World) -> Row:
    """Every disk that a cut may leave of each command, by its recorded operations."""
    from power_cuts import cuts
    from recorded import COMMANDS, BoxCut, Cut, ServeCut, violations

    row = Row("power cut (recorded writes and syncs in every legal order), every command")
    for name in (*COMMANDS, "serve-dir"):
        folder = world.folder / "cut" / name.replace(" ", "-")
        folder.mkdir(parents=True)
        cut: Cut = ServeCut(folder) if name == "serve-dir" else BoxCut(name, folder, (world.old, world.new))
        disks = list(cuts(cut.recorded))
        found = violations(cut, disks, again_every=20)
        row.tried += len(disks)
        row.outcomes[f"`{name}`: the old or the new"] += len(disks) - len(found)
        row.violations += [f"{name}: {what}" for what in found]
        shutil.rmtree(folder)
    return row
