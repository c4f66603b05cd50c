"""The largest network that issue 2 sets limits for, at full size with random weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from export.registry import REPOSITORY_ROOT
from runtime.artifact import open_artifact

_EXPORT = """
import sys
from pathlib import Path
from export.pipeline import export_model
export_model("kotoba-whisper-v2.0", weights="random", out=Path(sys.argv[1]), progress=print)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kotoba_is_exported_within_the_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # A process of its own, so that what other tests hold in memory does not count.
    subprocess.run([sys.executable, "-c", _EXPORT, str(tmp_path)], check=True, cwd=REPOSITORY_ROOT)
    manifest = open_artifact(tmp_path / "kotoba-whisper-v2.0" / "fp32").manifest
    stages = {stage.stage: stage for stage in manifest.export.stages}
    with capsys.disabled():
        for stage in stages.values():
            sys.stdout.write(f"\n{stage.stage:14} {stage.cpu_s:6.1f} CPU-s {stage.peak_rss / 1e9:6.2f} GB")
    without_golden = [stages["weights"], stages["onnx"]]
    assert max(stage.peak_rss for stage in without_golden) < 1.0e9
    assert sum(stage.cpu_s for stage in without_golden) < 60
    assert max(stage.peak_rss for stage in stages.values()) < 5e9
    assert manifest.content.source.weights == "random"
    assert max(parity.relative_l2 for parity in manifest.content.parity.outputs) <= 1e-4
    assert manifest.content.parity.results_equal == {"common_voice_ja_38843402": True}
