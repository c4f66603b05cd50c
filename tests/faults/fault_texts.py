"""Texts that lie (manifests, deltas, headers), and what a shell or a umask leaves of streams and folders."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_bundles import DAMAGED, refused
from fault_world import MODEL, SAMPLES, Row, World, digest, refusal
from hostile_text import archive_of, manifests, spent
from real_command import Command, done, preload, run
from toy_bundle import FILES, sha256_of, toy_manifest

from atlasport.streams import BROKEN_PIPE
from runtime.bundle.archive import write_bundle
from runtime.bundle.manifest import Base, Patch, Piece
from runtime.bundle.ustar import BLOCK, RECORD, header, padding

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534
LIMIT_BYTES, LIMIT_S = 200e6, 2.0
NUMBERS: list[Any] = [-1, 0, 1, 1.5, True, None, "1", [], {}, 2**31, 2**62, 2**63, 10**30, 10**400, float("inf")]


def costly_manifests(world: World) -> Row:
    """Unsigned, or signed by somebody else: 200 MB and 2 s at most."""
    row = Row("manifest that costs more than it weighs, `inspect`")
    path = world.folder / "costly.atlas"
    nothing = spent("inspect", world.folder / "nowhere")
    for name, text in manifests().items():
        path.write_bytes(archive_of(text))
        found = spent("inspect", path)
        problem = f"exit {found.code}" if found.code != DAMAGED[0] or len(found.err.splitlines()) != 1 else ""
        if found.peak > LIMIT_BYTES or found.cpu_s - nothing.cpu_s > LIMIT_S:
            problem += f" {found.peak / 1e6:.0f} MB, {found.cpu_s:.1f} s"
        if problem:
            row.violated(f"{name}: {problem}")
        else:
            row.note("refused, exit 4, within 200 MB and 2 s")
    return row


def deltas(world: World, count: int, chance: random.Random) -> Row:
    """Offsets, sizes and sources that no blob has, in a bundle whose every digest fits."""
    row = Row("delta with other offsets, sizes or sources, `install`")
    root, path = world.folder / "delta-box", world.folder / "delta.atlas"
    write_bundle(path, toy_manifest(version="0.9.0"), None, {sha256_of(data): data for data in FILES.values()})
    install = ("install", path, "--root", root, "--allow-unsigned")
    done(*install)
    source, own = FILES["README.md"], b"own" + FILES["artifact/weights.safetensors"]
    new = own + source
    files = {**FILES, "artifact/weights.safetensors": new}
    pieces = [Piece(source=None, offset=0, size=len(own)), Piece(source=sha256_of(source), offset=0, size=len(source))]
    patch = Patch(sha256=sha256_of(own), size=len(own), pieces=tuple(pieces))
    there = tuple(sorted({sha256_of(data) for data in FILES.values() if data in files.values()}))
    base = Base(version="0.9.0", manifest_sha256="0" * 64, blobs=there, patches={sha256_of(new): patch})
    manifest = toy_manifest(files, base=base, version="1.0.0")
    whole = json.loads(manifest.to_bytes())
    write_bundle(path, manifest, None, {sha256_of(own): own})
    control = ("install", path, "--root", world.box("delta-control", root), "--allow-unsigned")
    assert run(*control).code == 0, "the control: the delta as it was made is installed"
    behind = path.read_bytes()[BLOCK + len(manifest.to_bytes()) + len(padding(len(manifest.to_bytes()))) :].rstrip(
        b"\0"
    )
    for _ in range(count):
        changed = json.loads(json.dumps(whole))
        (record,) = changed["base"]["patches"].values()
        piece = chance.choice(record["pieces"])
        place, key = chance.choice([(piece, "offset"), (piece, "size"), (record, "size"), (piece, "source")])
        before = place[key]
        place[key] = chance.choice([value for value in (*NUMBERS, "9" * 64) if value != before or value is not before])
        if place[key] == before:
            continue
        data = (json.dumps(changed, sort_keys=True, indent=2) + "\n").encode()
        members = header("atlas.json", len(data)) + data + padding(len(data)) + behind
        members += padding(len(members)) + bytes(2 * BLOCK)
        path.write_bytes(members + bytes(-len(members) % RECORD))
        refused(row, root, f"{key} {before!r} -> {place[key]!r}"[:200], *install, codes=DAMAGED)
    return row


def headers(world: World, count: int, chance: random.Random) -> Row:
    """Shapes, types and offsets of safetensors, sizes of config.json: bad input, before anything is made."""
    row = Row("checkpoint with odd shapes, offsets or sizes, `export`")
    good = REPOSITORY / "pocket" / "sed-pocket"
    folder, out = world.folder / "odd", world.folder / "odd-out"
    shutil.copytree(good, folder)
    out.mkdir()
    command = ("export", MODEL, "--weights", folder, "--out", out)
    weights = (good / "model.safetensors").read_bytes()
    length = int.from_bytes(weights[:8], "little")
    entries = json.loads(weights[8 : 8 + length])
    names = [name for name in entries if name != "__metadata__"]
    (folder / "config.json").write_bytes(b"[]")
    preload(*command)
    (folder / "config.json").write_bytes((good / "config.json").read_bytes())
    for _ in range(count):
        changed = json.loads(json.dumps(entries))
        name = chance.choice(names)
        key = chance.choice(["dtype", "shape", "data_offsets"])
        value = changed[name][key]
        if key == "dtype" or not value or chance.random() < 0.2:
            changed[name][key] = chance.choice([other for other in ("X", *NUMBERS) if other != value])
        else:
            at = chance.randrange(len(value))
            value[at] = chance.choice([number for number in NUMBERS if number != value[at]])
        text = json.dumps(changed).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + weights[8 + length :])
        refused(row, out, f"{name} {key} {changed[name][key]!r}"[:200], *command, codes=(2,))
    return row


def streams(world: World) -> Row:
    """Behind `| true`, `>&-` and a full disk."""
    row = Row("stdout without a reader, closed, or full")
    commands: list[tuple[str | Path, ...]] = [
        ("--help",),
        ("models",),
        ("inspect", world.new),
        ("inspect", world.new, "--json"),
        ("list", "--root", world.installed),
        ("status", "--root", world.installed),
        ("run", world.artifact, SAMPLES / "sed_1.flac", "--threads", "1", "--json"),
    ]

    def without_reader() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)

    def full() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    kinds: list[tuple[str, Callable[[], None], int]] = [
        ("no reader", without_reader, BROKEN_PIPE),
        ("full", full, 3),
    ]
    for command in commands:
        for name, before, code in kinds:
            outcome = Command(*command, before=before).wait()
            last = outcome.err.strip().rpartition("\n")[2]
            quiet = "atlasport:" not in outcome.err if code == BROKEN_PIPE else last.startswith("atlasport: ")
            if outcome.code == code and quiet:
                row.note("exit 141 without a word" if code == BROKEN_PIPE else "refused, exit 3")
            else:
                row.violated(f"{command[0]}, {name}: exit {outcome.code}: {outcome.err}")
    return row


def umask(world: World) -> Row:
    """Made with umask 077, looked at by another user: a box can be read all the same, all else is 3 and one line."""
    row = Row("made with umask 077, used by another user")
    folder = world.folder / "private"
    folder.mkdir()
    box, bundle, artifacts = folder / "box", folder / "model.atlas", folder / "artifacts"
    mask = lambda: os.umask(0o077)  # noqa: E731
    for command in (world.freeze("1.0.0", bundle), world.install(world.old, box, "--activate")):
        outcome = Command(*command, before=mask).wait()
        if outcome.code:
            row.violated(f"{command[0]}: exit {outcome.code}: {outcome.err}")
    shutil.copytree(world.artifact, artifacts / MODEL / "fp32")
    artifacts.chmod(0o700)
    recording = SAMPLES / "sed_1.flac"
    before = digest(folder)
    for command in (("status", "--root", box), ("list", "--root", box), ("run", MODEL, recording, "--root", box)):
        outcome = Command(*command, before=lambda: os.setuid(NOBODY)).wait()
        if outcome.code or digest(folder) != before:
            row.violated(f"{command[0]}: exit {outcome.code}: {outcome.err}")
        else:
            row.note("reading commands work")
    for command in (
        ("inspect", bundle),
        ("install", bundle, "--root", folder / "other", "--allow-unsigned"),
        ("activate", MODEL, "1.0.0", "--root", box),
        ("gc", "--root", box),
        ("run", MODEL, recording, "--root", artifacts),
        ("run", artifacts / MODEL / "fp32", recording),
        ("push", bundle, "127.0.0.1:1/x:1"),
        ("freeze", artifacts / MODEL / "fp32", "--version", "1.0.0"),
    ):
        outcome = Command(*command, before=lambda: os.setuid(NOBODY)).wait()
        try:
            said = refusal(outcome, (3,))
            assert digest(folder) == before, "something has changed"
        except AssertionError as error:
            row.violated(f"{command[0]}: {error}")
        else:
            row.note(said)
    assert run("status", "--root", box).code == 0
    return row
