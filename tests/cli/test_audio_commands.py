"""`run` and `serve-dir` on damaged recordings and on a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SHORT = REPOSITORY / "samples" / "short_en.wav"
TEXT = "set a timer for twenty six minutes"


def atlasport(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "atlasport", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, input=stdin, capture_output=True, check=False)


@pytest.fixture
def root(pocket_artifact: Path) -> Path:
    return pocket_artifact.parents[1]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The end of a silence behind the words is missing."""
    whole = SHORT.read_bytes()
    size = int.from_bytes(whole[40:44], "little")
    assert whole[36:40] == b"data"
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "cut.wav"
    path.write_bytes(whole[:40] + (size + 32000).to_bytes(4, "little") + whole[44:])
    return path


def test_a_recording_from_a_pipe(root: Path, tmp_path: Path):
    process = atlasport("run", "whisper-pocket", "-", "--root", root, "--out", tmp_path, stdin=SHORT.read_bytes())
    assert (process.returncode, process.stdout.decode()) == (0, f"{TEXT}\n")
    assert (tmp_path / "-.txt").read_text(encoding="utf-8").strip() == TEXT
    process = atlasport("run", "whisper-pocket", "-", "--root", root)
    assert process.returncode == 2
    assert process.stderr.startswith(b"atlasport: -: expected a recording")


def test_a_damaged_recording(root: Path, damaged: Path):
    process = atlasport("run", "whisper-pocket", damaged, "--root", root, "--json")
    assert (process.returncode, process.stdout) == (2, b"")
    assert b"3.06 s found, about 1.00 s are missing; --accept-damaged reads what is there" in process.stderr
    assert process.stderr.count(b"\n") == 1
    process = atlasport("run", "whisper-pocket", damaged, "--root", root, "--json", "--accept-damaged")
    result = json.loads(process.stdout)
    assert (process.returncode, result["text"]) == (0, TEXT)
    assert result["audio"]["remark"].startswith("damaged: ")
    assert b"3.06 s found, about 1.00 s are missing" in process.stderr


def test_serve_dir_puts_damaged_recordings_aside_unless_told(root: Path, damaged: Path, tmp_path: Path):
    source, out = damaged.parent, tmp_path / "out"
    options = (source, out, "whisper-pocket", "--root", root, "--once", "--interval", "0.05")
    whole = damaged.read_bytes()
    assert atlasport("serve-dir", *options).returncode == 0
    (error,) = (source / "failed").glob("*.error")
    assert "3.06 s found, about 1.00 s are missing" in error.read_text(encoding="utf-8")
    damaged.write_bytes(whole)
    process = atlasport("serve-dir", *options, "--format", "json", "--accept-damaged")
    assert b"cut.wav: 3.1 s of audio" in process.stderr
    assert b"damaged: " in process.stderr
    (result,) = out.glob("*.json")
    assert json.loads(result.read_text(encoding="utf-8"))["audio"]["remark"].startswith("damaged: ")
