"""What freeze and install cost: the benchmark's own numbers agree with each other and with the disk."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from bench.bundle import COPY, FREEZE, INSTALL, MEMORY_LIMIT

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.bundle", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_costs_of_a_bundle(sed_artifact: Path, tmp_path: Path) -> None:
    done = bench(sed_artifact, "--runs", "3", "--out", tmp_path, "--work", tmp_path)
    results = json.loads((tmp_path / "sed-pocket-bundle.json").read_text())
    weights = (sed_artifact / "weights.safetensors").stat().st_size
    assert results["bundle_bytes"] > weights
    medians = {}
    for name in (FREEZE, COPY, INSTALL):
        runs = results["contestants"][name]["runs"]
        assert len(runs) == 3
        medians[name] = statistics.median(run["wall_s"] for run in runs)
        assert results["contestants"][name]["median"]["wall_s"] == medians[name] > 0
    ratio = results["install"]["ratio"]["wall_s"]
    assert ratio == medians[INSTALL] / medians[COPY]
    assert results["install"]["met"] == (ratio <= 1.5)
    # A Python with its imports, and nothing that grows with the bundle.
    assert all(30e6 < peak < MEMORY_LIMIT for peak in results["memory"]["peak_bytes"].values())
    assert done.returncode == int(not results["install"]["met"]), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sed-pocket-bundle.json"]


def test_usage_errors_are_one_line(tmp_path: Path) -> None:
    done = bench("nothing-here", "--out", tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
