"""The fault campaign: `python tests/faults` does to real commands what power cuts, disks and attackers do.

It writes docs/faults.json; `--readme docs/security.md` writes that as a table into that page. Work lies in memory
(/dev/shm), so that nothing but the commands takes time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
RESULTS = REPOSITORY / "docs" / "faults.json"


def main() -> int:
    """Run the campaign; exit code 1 where something was neither old nor new, or was not refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", type=Path, help="only write the table of the last campaign into this file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the faults, such as 0.05")
    given = parser.parse_args()
    if given.readme:
        from fault_table import write_table

        write_table(given.readme, given.out)
        return 0
    return _campaign(given.out, given.seed, given.scale)


def _campaign(out: Path, seed: int, scale: float) -> int:
    # One thread: the machine is not ours alone, and a fork takes no threads along.
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path += [str(REPOSITORY), str(REPOSITORY / "tests" / "bundle")]
    from fault_campaign import Extent, results_of, rows
    from fault_world import make_world
    from real_command import run

    extent = Extent(**{name: max(10, round(number * scale)) for name, number in vars(Extent()).items()})
    began = time.perf_counter()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="atlasport-faults-", dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        folder.chmod(0o755)  # other users look at what they may not change
        exported = run("export", "sed-pocket", "--formats", "onnx", "--out", folder / "artifacts")
        if exported.code:
            raise SystemExit(exported.err)
        world = make_world(folder, folder / "artifacts" / "sed-pocket" / "fp32")
        found = rows(world, extent, seed)
        results = results_of(found, extent, seed, time.perf_counter() - began)
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return int(any(row["violations"] for row in results["rows"]))


sys.exit(main())
