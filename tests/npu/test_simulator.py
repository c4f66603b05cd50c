"""The simulated device does what it says, and fails where it should: its own tests, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from npu_simulator import ROOT, reports, simulated_npu

CHECKS = ROOT / "tests" / "npu_simulator" / "checks"

# The first of them compiles the device.
pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("simulator_library")]


def test_the_device(tmp_path: Path):
    environment = os.environ | simulated_npu(tmp_path, devices=2) | {"OMP_NUM_THREADS": "1"}
    files = [str(CHECKS / name) for name in ("check_device.py", "check_faults.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    # The record of the whole run was written when it ended.
    [report] = reports(tmp_path)
    assert report["soc"] == "Ascend910B4"
    assert len(report["memory"]) == 2
