"""The fault campaign itself: a small one finds nothing, and bugs that are put in are found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fault_table import END, START, write_table
from fault_world import digest, refusal
from real_command import Outcome

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(0, "", "", 0),
        Outcome(1, "", "atlasport: no\n", 0),
        Outcome(4, "", "", 0),
        Outcome(4, "", "atlasport: no\nand no\n", 0),
        Outcome(4, "", "Traceback\n", 0),
        Outcome(70, "", "atlasport: internal error\n", 0),
    ],
)
def test_what_is_no_refusal(outcome: Outcome) -> None:
    with pytest.raises(AssertionError):
        refusal(outcome, (4, 3))
    assert refusal(Outcome(4, "", "atlasport: no\n", 0), (4, 3)) == "refused, exit 4"


def test_every_change_of_a_folder_shows(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("a")
    seen = [digest(tmp_path)]
    for change in (
        lambda: (tmp_path / "a").write_bytes(b"b"),
        lambda: (tmp_path / "a").chmod(0o600),
        lambda: (tmp_path / "b").hardlink_to(tmp_path / "a"),
        lambda: (tmp_path / "folder").rename(tmp_path / "other"),
        lambda: ((tmp_path / "link").unlink(), (tmp_path / "link").symlink_to("b")),
    ):
        change()
        seen.append(digest(tmp_path))
    assert len(set(seen)) == len(seen)
    (tmp_path / "lock").touch()
    assert digest(tmp_path) == seen[-1]


def test_the_table_is_that_of_the_results(tmp_path: Path) -> None:
    results = {
        "date": "2026-01-01",
        "command": "make faults",
        "commit": "abc",
        "seed": 7,
        "seconds": 600,
        "machine": {"system": "Linux", "cores": 2},
        "versions": {"atlasport": "1.2.3", "python": "3.11"},
        "rows": [
            {"fault": "a", "tried": 2000, "outcomes": {"refused, exit 4": 2000}, "violations": []},
            {"fault": "b", "tried": 2, "outcomes": {"old state": 1}, "violations": ["neither"]},
        ],
    }
    (tmp_path / "faults.json").write_text(json.dumps(results))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_table(readme, tmp_path / "faults.json")
        lines = readme.read_text().splitlines()
        assert lines[:2] + lines[-2:] == ["before", START, END, "after"]
        assert "| a | 2,000 | refused, exit 4: 2,000 | 0 |" in lines
        assert "| b | 2 | old state: 1 | 1 |" in lines
    readme.write_text("no marks\n")
    with pytest.raises(SystemExit, match="expected the marks"):
        write_table(readme, tmp_path / "faults.json")
    assert readme.read_text() == "no marks\n"


def test_the_last_full_campaign_found_nothing() -> None:
    results = json.loads((HERE.parents[1] / "docs" / "faults.json").read_text(encoding="utf-8"))
    assert [row["violations"] for row in results["rows"] if row["violations"]] == []
    tried = {row["fault"]: row["tried"] for row in results["rows"]}
    for name in ("freeze", "install", "activate", "rollback", "serve-dir"):
        assert tried[f"kill -9 of `{name}` at a random time"] >= 200
    assert tried["one flipped bit in a signed bundle, `install`"] >= 2000
    assert tried["truncated bundle, `install`"] >= 200


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_small_campaign_finds_nothing(tmp_path: Path) -> None:
    done = python(HERE, "--scale", "0.05", "--out", tmp_path / "faults.json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "faults.json").read_text())["rows"]
    assert len(rows) >= 19
    for row in rows:
        assert row["tried"] >= 5, row
        assert row["violations"] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_bugs_that_are_put_in_are_found(sed_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    done = python(HERE / "injected.py", tmp_path / "world", sed_artifact)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("none") == 0
    assert min(found.values()) > 0, found
