"""What is exported follows from the checkpoint and the recordings alone: every byte, whatever process writes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import REPOSITORY, atlasport

from runtime.artifact import open_artifact


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", ["parakeet", "sed", "granite"])
def test_an_export_of_another_process_gives_the_same_bytes(
    family: str, unjudged: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    artifact: Path = request.getfixturevalue(f"{family}_artifact")
    options = ["--formats", "onnx,torchscript"]
    if family == "granite":
        checkpoint = request.getfixturevalue("granite_checkpoint")
        options = ["--formats", "onnx", "--weights", checkpoint, "--recordings", unjudged]
    # Its hashes of strings are not this one's.
    done = atlasport("export", artifact.parent.name, *options, "--out", tmp_path, PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    again = tmp_path / artifact.parent.name / "fp32"
    assert open_artifact(again).content == open_artifact(artifact).content
    names, expected = (
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in (again, artifact)
    )
    assert names == expected
    for name in names:
        data = (again / name).read_bytes()
        if name.name != "manifest.json":
            assert data == (artifact / name).read_bytes(), name
        assert str(REPOSITORY).encode() not in data, name
        assert str(tmp_path).encode() not in data, name
