"""Bugs put into the commands on purpose: the campaign must see each of them.

`python injected.py FOLDER ARTIFACT` prints one JSON object: violations by bug, and those without any.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO
from unittest import mock

sys.path += [str(Path(__file__).resolve().parents[1] / "bundle")]

from fault_bundles import DAMAGED, refused
from fault_kills import BoxVictim, FreezeVictim, ServeVictim, kill
from fault_world import Row, World, make_world

from runtime.box.inbox import Inbox
from runtime.box.root import Box
from runtime.bundle.archive import BundleReader

KILLS = 15


@contextmanager
def in_place(path: Path, size: int) -> Iterator[BinaryIO]:
    """Writes over the old bundle."""
    del size
    with path.open("wb") as file:
        time.sleep(0.3)  # a larger disk would take it
        yield file


def piecewise(box: Box) -> None:
    """Writes the state over the old one, byte by byte."""
    with (box.path / "state.json").open("wb", buffering=0) as file:
        for byte in (box.staging / "state.json").read_bytes():
            file.write(bytes([byte]))
            time.sleep(0.001)


def unpadded(reader: BundleReader, expected: bytes, what: str) -> None:
    """Skips what must be zero."""
    del what
    reader._read(len(expected))


def flipped_at_its_end(world: World) -> Row:
    """One bit of the archive's last zeros."""
    row = Row("flip")
    path, root = world.folder / "padding.atlas", world.box("padding")
    data = bytearray(world.new.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused(row, root, "the last bit", *world.install(path, root), codes=DAMAGED)
    return row


def main() -> None:
    world = make_world(Path(sys.argv[1]), Path(sys.argv[2]))
    chance = random.Random(0)

    def install() -> Row:
        victim = BoxVictim(world, "install", world.installed, lambda root: world.install(world.new, root))
        return kill(victim, KILLS, chance)

    cases: dict[str, tuple[AbstractContextManager[object], Callable[[], Row]]] = {
        "freeze writes in place": (
            mock.patch("runtime.bundle.archive.replaced_file", in_place),
            lambda: kill(FreezeVictim(world), KILLS, chance),
        ),
        "the state is written in place": (mock.patch.object(Box, "commit", piecewise), install),
        "serve-dir does not look back": (
            mock.patch.object(Inbox, "_recover", return_value=None),
            lambda: kill(ServeVictim(world), KILLS, chance),
        ),
        "padding is not looked at": (
            mock.patch.object(BundleReader, "_expect", unpadded),
            lambda: flipped_at_its_end(world),
        ),
    }
    found = {}
    for name, (bug, look) in cases.items():
        with bug:
            found[name] = len(look().violations)
    found["none"] = len(flipped_at_its_end(world).violations)
    sys.stdout.write(json.dumps(found))


main()
