"""`atlasport serve-dir` on a simulated NPU that fails: the process ends with 3, the next one goes on where it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from npu_simulator import ROOT, simulated_npu

from runtime.errors import ExitCode

RECORDINGS = ("short_de.wav", "short_en.wav", "short_es.wav")


def test_a_failed_device_ends_the_process_and_loses_nothing(npu_pocket: Path, simulator_library: Path, tmp_path: Path):
    assert simulator_library.exists()
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in RECORDINGS:
        shutil.copy(ROOT / "samples" / name, source)

    def serve_once(control: dict[str, object]) -> subprocess.CompletedProcess[str]:
        environment = os.environ | simulated_npu(tmp_path, control=control) | {"OMP_NUM_THREADS": "1"}
        arguments = [str(source), str(out), str(npu_pocket), "--device", "npu:0", "--once", "--interval", "0.05"]
        command = [sys.executable, "-m", "atlasport", "serve-dir", *arguments]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)

    # The warm-up and the first recording take some 30 of them.
    failed = serve_once({"asynchronous_error": {"operators": "aten::gelu", "call": 45}})
    assert failed.returncode == ExitCode.ENVIRONMENT, failed.stderr
    assert "npu:0 failed" in failed.stderr.splitlines()[-1]
    before = sorted(path.name for path in out.glob("*.txt"))
    assert 0 < len(before) < len(RECORDINGS)
    [claimed] = (source / ".atlasport" / "claimed").iterdir()
    assert claimed.name not in {path.name for path in source.iterdir()}

    assert serve_once({}).returncode == ExitCode.OK
    assert len(list(out.glob("*.txt"))) == len(RECORDINGS)
    assert len(list((source / "done").iterdir())) == len(RECORDINGS)
    assert sorted(path.name for path in source.glob("*.wav")) == []
