"""The README's transcript of a trained model: its commands, run in a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from trained_models import ROOT

pytestmark = pytest.mark.real

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (make (?:export|run|verify) .*)$", README, re.MULTILINE)


def test_the_transcript_of_a_trained_model(tmp_path: Path):
    folder = tmp_path / "atlasport"
    keep_out = shutil.ignore_patterns(".git", ".venv", "artifacts", "__pycache__", ".*_cache", ".hypothesis", ".cache")
    shutil.copytree(ROOT, folder, ignore=keep_out)
    (folder / ".venv").symlink_to(sys.prefix)
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "ARGS"}}
    assert [command.split()[1] for command in COMMANDS] == ["export", "run", "verify"]
    for command in COMMANDS:
        # -o: the environment is there and needs no installing.
        words = ["make", "-o", ".venv/.export", *command.split()[1:]]
        done = subprocess.run(
            words, cwd=folder, env={**environment, "COLUMNS": "100"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        shown = README.partition(f"$ {command}\n")[2].partition("\n$ ")[0].partition("\n```")[0]
        # Times and sizes are the machine's; words and verdicts are not.
        for line in re.findall(r"^(?: *And so.*|verdict .*)$", shown, re.MULTILINE):
            assert line in done.stdout
