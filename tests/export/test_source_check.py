"""An artifact against its checkpoint once more: what somebody changed so that the artifact fits itself is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from atlasport.cli import app
from export.source_check import Checkpoint, check_source
from runtime.artifact import open_artifact, sha256_of
from runtime.errors import GateError, InputError
from runtime.manifest import MANIFEST_NAME, Content, FileEntry, Manifest

POCKET = Path(__file__).resolve().parents[2] / "pocket"
SED, WHISPER = Checkpoint(str(POCKET / "sed-pocket")), Checkpoint(str(POCKET / "whisper-pocket"))


@pytest.fixture
def folder(sed_artifact: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return copied(sed_artifact, tmp_path)


def copied(artifact: Path, tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("results", "logs", "report.html")
    return shutil.copytree(artifact, tmp_path / artifact.parent.name / "fp32", ignore=ignored)


def fit(folder: Path, change: Callable[[Content], Content] = lambda content: content) -> None:
    """Write a manifest that fits the files of the folder, as somebody would who changes an artifact."""
    manifest = Manifest.from_bytes((folder / MANIFEST_NAME).read_bytes(), str(folder))
    files = {
        name: FileEntry(size=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in manifest.content.files
    }
    content = change(manifest.content.model_copy(update={"files": files}))
    (folder / MANIFEST_NAME).write_bytes(Manifest.create(content, manifest.export).to_bytes())
    open_artifact(folder)


def test_an_artifact_is_its_checkpoint_s(sed_artifact: Path, pocket_artifact: Path) -> None:
    for artifact, checkpoint in ((sed_artifact, SED), (pocket_artifact, WHISPER)):
        content = open_artifact(artifact).content
        parity = check_source(artifact, checkpoint)
        assert parity.results_equal.keys() == {recording.name for recording in content.recordings}
        assert {(output.case, output.output) for output in parity.outputs} == {
            (case.name, name) for case in content.cases for name in case.outputs
        }
        assert all(output.relative_l2 < 1e-4 for output in parity.outputs)


def changed_array(folder: Path, name: str, factor: float, key: str = "") -> None:
    """Multiply an array, the first matrix by default."""
    arrays = load_file(folder / name)
    key = key or next(key for key, array in arrays.items() if array.ndim > 1)
    arrays[key] = (arrays[key] * factor).astype(arrays[key].dtype)
    save_file({key: np.asarray(array) for key, array in arrays.items()}, folder / name)


def test_golden_outputs_that_were_changed_with_the_manifest(folder: Path) -> None:
    content = open_artifact(folder).content
    case = next(case for case in content.cases if case.graph == "frontend")
    output, stored = next(iter(case.outputs.items()))
    changed_array(folder, "golden.safetensors", 1.01, stored.key)
    fit(folder)
    with pytest.raises(GateError, match=rf"case {case.name}, output {output}: .*; the artifact is not what it is said"):
        check_source(folder, SED)


def test_weights_that_were_changed_with_the_manifest(folder: Path) -> None:
    changed_array(folder, "weights.safetensors", 1.0001)
    fit(folder)
    with pytest.raises(GateError, match=r"weights\.safetensors has SHA-256 .*, the checkpoint makes SHA-256 "):
        check_source(folder, SED)


def test_settings_that_were_changed(folder: Path) -> None:
    def other(content: Content) -> Content:
        return content.model_copy(update={"frontend": content.frontend | {"sample_rate": 16000}})

    fit(folder, other)
    with pytest.raises(GateError, match=r"frontend say sample_rate 16000, the checkpoint "):
        check_source(folder, SED)


def test_a_tokenizer_and_a_text_that_were_changed(pocket_artifact: Path, tmp_path: Path) -> None:
    folder = copied(pocket_artifact, tmp_path)
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b"\n")
    fit(folder)
    with pytest.raises(GateError, match=r"tokenizer\.json has SHA-256 "):
        check_source(folder, WHISPER)
    shutil.copyfile(pocket_artifact / "tokenizer.json", folder / "tokenizer.json")

    def other(content: Content) -> Content:
        first, *others = content.recordings
        heard = json.loads(json.dumps(first.result).replace("a", "e"))
        return content.model_copy(update={"recordings": (first.model_copy(update={"result": heard}), *others)})

    fit(folder, other)
    with pytest.raises(GateError, match="hears something else than"):
        check_source(folder, WHISPER)


def test_another_checkpoint(folder: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(POCKET / "sed-pocket", tmp_path / "other")
    file = next(checkpoint.glob("*.safetensors"))
    changed_array(checkpoint, file.name, 1.5)
    with pytest.raises(GateError, match=rf"another checkpoint than --source: {file.name} has SHA-256"):
        check_source(folder, Checkpoint(str(checkpoint)))
    fit(folder, lambda content: content.model_copy(update={"model": "my-sounds"}))
    with pytest.raises(InputError, match="a checkpoint of the family cnn8rnn, found one of whisper"):
        check_source(folder, WHISPER)


def test_the_command(folder: Path) -> None:
    def verify(*arguments: Any) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["verify", *map(str, arguments)])
        return done.exit_code, done.output

    code, said = verify(folder, "--source", POCKET / "sed-pocket")
    assert code == 0
    assert "weights, settings and golden are this checkpoint's: " in said.splitlines()[-1]
    changed_array(folder, "weights.safetensors", 2)
    fit(folder)
    code, said = verify(folder, "--source", POCKET / "sed-pocket")
    assert code == 1
    assert said.splitlines()[-1].startswith("atlasport: ")
