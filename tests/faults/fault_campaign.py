"""All faults, one after the other, and what came of them."""

from __future__ import annotations

import multiprocessing
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fault_box as box
import fault_bundles as bundles
import fault_kills as kills
import fault_machine as machine
import fault_texts as texts
from fault_world import MIB, Row, World

PACKAGES = ("atlasport", "model-signing", "cryptography", "onnxruntime", "hypothesis", "filelock")


@dataclass(frozen=True)
class Extent:
    """How often each fault is tried."""

    kills: int = 200
    flips: int = 2000
    truncations: int = 200
    fuzzed: int = 2000
    pairs: int = 50
    rooms: int = 20
    mutations: int = 200

    def rooms_up_to(self, size: int) -> list[int]:
        """Return bytes of free space from nothing to `size`."""
        return [size * step // self.rooms // 4096 * 4096 for step in range(self.rooms)]


def rows(world: World, extent: Extent, seed: int) -> list[Row]:
    """Run the campaign: kills beside everything else, each in a process of its own."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        parts = [pool.submit(part, world, extent, seed) for part in (_bundles_and_machines, _kills)]
        return [row for part in parts for row in part.result()]


def _bundles_and_machines(world: World, extent: Extent, seed: int) -> list[Row]:
    size = world.new.stat().st_size
    steps: list[Callable[[], Row]] = [
        lambda: bundles.keys(world),
        lambda: bundles.hostile_archives(world),
        lambda: bundles.hostile_contents(world),
        lambda: bundles.fuzzed(world, extent.fuzzed, seed),
        lambda: bundles.truncations(world, extent.truncations, random.Random(seed)),
        lambda: bundles.flips(world, extent.flips, random.Random(seed)),
        lambda: texts.costly_manifests(world),
        lambda: texts.deltas(world, extent.mutations, random.Random(seed)),
        lambda: texts.headers(world, extent.mutations, random.Random(seed)),
        lambda: texts.streams(world),
        lambda: machine.clock(world),
        lambda: machine.at_once(world, extent.pairs, random.Random(seed)),
        lambda: machine.lock_held(world),
        *box.steps(world, extent, seed),
    ]
    if os.geteuid() == 0:
        steps += [
            lambda: machine.full_freeze(world, extent.rooms_up_to(size)),
            lambda: machine.full_install(world, extent.rooms_up_to(size)),
            lambda: machine.full_serve(world, [room * 4096 for room in range(extent.rooms)]),
            lambda: machine.read_only(world),
            lambda: machine.no_permission(world),
            lambda: texts.umask(world),
        ]
    else:
        say("not root: no full or read-only disks, no other user")
    return _told(steps)


def _kills(world: World, extent: Extent, seed: int) -> list[Row]:
    everywhere: list[Callable[[], Row]] = [
        lambda name=name: kills.at_every_change(world, name) for name in kills.CHANGING
    ]
    return _told(
        [
            *(
                lambda victim=victim: kills.kill(victim, extent.kills, random.Random(seed))
                for victim in kills.victims(world)
            ),
            *everywhere,
        ]
    )


def say(line: str) -> None:
    """Print at once: the campaign takes a while."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _told(steps: list[Callable[[], Row]]) -> list[Row]:
    found = []
    for step in steps:
        began = time.perf_counter()
        row = step()
        seconds = time.perf_counter() - began
        say(f"{row.fault}: {row.tried} tried, {dict(row.outcomes)}, {len(row.violations)} violations, {seconds:.0f} s")
        for violation in row.violations[:5]:
            say(f"  VIOLATION {violation}")
        found.append(row)
    return found


def results_of(found: list[Row], extent: Extent, seed: int, seconds: float) -> Mapping[str, Any]:
    """Return what is written to docs/faults.json."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python tests/faults", *sys.argv[1:]]),
        "commit": commit.stdout.strip() or "no commit",
        "seed": seed,
        "seconds": round(seconds, 1),
        "extent": asdict(extent),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB * MIB,
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "model": "sed-pocket, fp32, profile cpu",
        "rows": [
            {
                "fault": row.fault,
                "tried": row.tried,
                "outcomes": dict(sorted(row.outcomes.items())),
                "violations": row.violations,
            }
            for row in found
        ],
    }
