"""A family's whole way by commands: the head of a hybrid, exported, run, verified, frozen and installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import SAMPLES, SHORT, assert_one_line, atlasport
from ctc_checkpoints import hybrid_nemo

from runtime.bundle.signing import generate_key


@pytest.mark.slow
def test_from_the_artifact_to_the_box(ctc_artifact: Path, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(ctc_artifact, root / "ctc-random" / "fp32")
    process = atlasport(
        "run", "ctc-random", SHORT, SAMPLES / "short_en_2.wav", "--batch", "2", "--json", "--root", root
    )
    assert process.returncode == 0, process.stderr
    heard = json.loads(process.stdout.splitlines()[0])
    assert heard["segments"][0]["words"][0]["start"] >= 0
    process = atlasport("verify", "ctc-random", "--runs", "1", "--root", root)
    assert process.returncode == 0, process.stderr
    assert "pass" in process.stdout
    process = atlasport("doctor", "--root", root)
    assert "full attention up to 120 s" in " ".join(process.stdout.split()), process.stdout
    private, public = generate_key(tmp_path)
    options = ("--profile", "cpu", "--version", "1.0.0", "--allow-unknown-licence", "--out", tmp_path / "ctc.atlas")
    process = atlasport("freeze", "ctc-random", *options, "--key", private, "--root", root)
    assert process.returncode == 0, process.stderr
    box = ("--root", tmp_path / "box")
    process = atlasport("install", tmp_path / "ctc.atlas", *box, "--public-key", public, "--activate")
    assert process.returncode == 0, process.stderr
    process = atlasport("run", "ctc-random", SHORT, "--json", *box)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["segments"] == heard["segments"]


def test_a_head_that_is_not_there_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    weights = hybrid_nemo(tmp_path / "hybrid.nemo")
    process = atlasport("export", "mine", "--weights", weights, "--head", "rnnt", "--out", tmp_path / "artifacts")
    assert_one_line(process, 2, "--head: expected one of ctc, tdt, found 'rnnt'")
    assert not (tmp_path / "artifacts").exists()


def test_a_layout_has_the_usual_head() -> None:
    process = atlasport("export", "parakeet-pocket", "--layout", "onnx-asr", "--head", "ctc")
    assert_one_line(process, 2, "--head ctc: --layout onnx-asr writes a checkpoint's usual head")
