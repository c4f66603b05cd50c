"""A simulated NPU for tests: a stand-in for torch_npu that a process under test finds on its path.

It computes with the CPU's kernels, so it says nothing of a real device's numbers, support or speed. What it does say:
where tensors lie, which operators run with which shapes, what is copied when, which flags are set in which order, and
what becomes of a fault. What a test can control and read stands in site/torch_npu/simulator.py.

    environment = simulated_npu(tmp_path, control={"deny": ["aten::gelu"]})
    subprocess.run([...], env=os.environ | environment)
    [report] = reports(tmp_path)

Never import its torch_npu into the process that runs the tests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SITE = Path(__file__).resolve().parent / "site"
ROOT = Path(__file__).resolve().parents[2]


def simulated_npu(
    folder: Path, *, soc: str = "910B4", devices: int = 1, control: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Return the environment variables that give a process simulated NPUs.

    Parameters
    ----------
    folder : Path
        Takes the control file and one report for each process that exits.
    soc : str
        `910B4`, `310P3`, ...
    devices : int
        How many.
    control : mapping, optional
        What is to go wrong: `torch_npu.simulator.Control`.

    """
    (folder / "control.json").write_text(json.dumps(control or {}), encoding="utf-8")
    (folder / "reports").mkdir(exist_ok=True)
    return {
        "PYTHONPATH": os.pathsep.join([str(SITE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "NPU_SIMULATOR_SOC": soc,
        "NPU_SIMULATOR_DEVICES": str(devices),
        "NPU_SIMULATOR_CONTROL": str(folder / "control.json"),
        "NPU_SIMULATOR_REPORTS": str(folder / "reports"),
        # Set where a developer has a real one.
        "ASCEND_RT_VISIBLE_DEVICES": ",".join(map(str, range(devices))),
    }


def reports(folder: Path) -> list[dict[str, Any]]:
    """Return what the processes that have exited recorded, the oldest first."""
    files = sorted((folder / "reports").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]
