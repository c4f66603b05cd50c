"""A run on a simulated NPU comes home in acceptance's archive and is published as what it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from npu_simulator import ROOT

from atlasport.acceptance import accept
from atlasport.model_repository.folder import publish_repository
from runtime.errors import GateError
from verify.run import verify_artifact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def test_from_the_box_to_the_repository(sed_artifact: Path, tmp_path: Path, lend_npu: Callable[..., Path]) -> None:
    at_home = Path(shutil.copytree(sed_artifact, tmp_path / "home"))
    on_box = Path(shutil.copytree(at_home, tmp_path / "box"))
    assert verify_artifact(at_home, engines=["torchscript"], runs=1, threads=1)
    lend_npu()
    summary, archive = accept(
        "npu:0", [on_box], tmp_path, minutes=0, runs=1, step_timeout_s=600, progress=lambda _: None
    )
    assert summary.exit_code == 0
    with pytest.raises(GateError, match="of a simulated device"):
        publish_repository(at_home, tmp_path / "out", archives=[archive], wheel=False)
    assert not (tmp_path / "out").exists()
    folder = publish_repository(at_home, tmp_path / "out", archives=[archive], allow_simulated=True, wheel=False).path
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "\n# SIMULATED DEVICE: " in text
    assert "\n> **Not run on an NPU.** A simulated device stood in for it" in text
    main = json.loads((folder / "results" / "accuracy_eval.json").read_text())
    assert (main["device"], main["simulated"]) == ("npu:0", True)
    # The flags as set, not those of the device's default precision, which ran in the same archive.
    assert main["flags"]["matmul.allow_hf32"] == "false"
    assert json.loads((folder / "results" / "cpu" / "accuracy_eval.json").read_text())["device"] == "cpu"
    for script in re.findall(r"^python (\S+)", text, re.MULTILINE):
        done = subprocess.run(
            [sys.executable, script, "--device", "npu:0"],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'tests/npu_simulator/site'}:{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "simulated device: " in done.stdout
