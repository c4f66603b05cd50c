"""Lends the real torch_npu over stub CANN to processes under test."""

from __future__ import annotations

import json
import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from runtime.ascend import CANN_OF_TORCH_NPU
from torch_npu_stub.build import build_cann, environment_of

ROOT = Path(__file__).resolve().parents[2]
# Of the newest wheel that is listed, for one that is not.
CANN = "9.1.0"
# What a test is to find out must not come from the shell that it was started from.
OWN = ("ASCEND_", "CANN_STUB_", "TORCH_", "TASK_QUEUE_", "RANK", "PYTHONPATH", "LD_LIBRARY_PATH")


class RealTorchNpu:
    """A virtual environment with the wheel, and the variables by which processes find the stub.

    What the stub shows and does is set by variables: CANN_STUB_SOC, CANN_STUB_DEVICES, CANN_STUB_FAIL (an operator
    that fails, asynchronously) and CANN_STUB_LOG (a file that tells what torch_npu asked for).
    """

    def __init__(self, folder: Path) -> None:
        site = next(folder.glob("lib/python3*/site-packages"))
        self.torch_npu = site / "torch_npu"
        self.version = next(site.glob("torch_npu-*.dist-info")).name.removesuffix(".dist-info").partition("-")[2]
        with FileLock(folder / "cann.lock"):
            self.cann = build_cann(folder, CANN_OF_TORCH_NPU.get(self.version, CANN))
        self._python = folder / "bin" / "python"

    def run(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python; a variable that is given empty is not set."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
        given = kept | environment_of(self.cann) | {"OMP_NUM_THREADS": "1"} | variables
        environment = {name: value for name, value in given.items() if value}
        command = [str(self._python), *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)

    def atlasport(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the project's command line."""
        return self.run("-m", "atlasport", *arguments, **variables)

    def answers(self, script: str, **variables: str) -> dict[str, Any]:
        """Run a script that fills `answers`, which becomes JSON."""
        ending = "\nimport json\nprint('\\n' + json.dumps(answers))"
        done = self.run("-c", f"answers = {{}}\n{script}{ending}", **variables)
        assert done.returncode == 0, done.stderr
        answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answers


@lru_cache(maxsize=1)
def lend_torch_npu() -> RealTorchNpu:
    """Return what `make test-torch-npu` has installed; elsewhere the test is skipped."""
    folder = os.environ.get("TORCH_NPU_VENV")
    if not folder:
        pytest.skip("TORCH_NPU_VENV is not set: run `make test-torch-npu`")
    return RealTorchNpu(Path(folder).resolve())
