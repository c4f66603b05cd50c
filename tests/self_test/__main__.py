"""The verdict's own test: `python tests/self_test` verifies correct builds and faulty ones.

Finished runs are lines of runs.jsonl in the work folder: after a kill the same command goes on. It writes
docs/verdict.json, and its table into docs/verdict.md, from what ran so far.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was not run; exit code 1 where a correct build failed or a fault was missed."""
    parser = argparse.ArgumentParser(prog="python tests/self_test", description=__doc__)
    parser.add_argument("--only", default="", help="pocket, trained, or words of runs: 'sed-pocket fp16', avx2")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs of one thread at once")
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".cache" / "self-test")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "verdict.json")
    parser.add_argument("--page", type=Path, default=REPOSITORY / "docs" / "verdict.md")
    given = parser.parse_args(arguments)
    from self_test.campaign import Campaign, say
    from self_test.plan import settings
    from self_test.summary import results, write

    campaign = Campaign(given.work.resolve())
    campaign.run(settings(given.only), given.jobs)
    found = results(campaign.line_of)
    write(found, given.out, given.page)
    counts = found["counts"]
    say(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()))
    return int(bool(counts["false_alarms"] or counts["misses"]))


if __name__ == "__main__":
    # Where this file lies, modules have the names of others: what is imported lies above.
    sys.path[:] = [str(REPOSITORY), str(HERE.parent), *(path for path in sys.path if path and Path(path) != HERE)]
    sys.exit(main())
