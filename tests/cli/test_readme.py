"""Every command of the README and of docs/run.md is run, in a copy of the repository; its models are the registry's.

Those with trained weights are run by tests/real.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.registry import MODELS

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SHELL = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
RUN = (REPOSITORY / "docs" / "run.md").read_text(encoding="utf-8")
SHELL += re.findall(r"^```sh\n(.*?)^```", RUN, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in SHELL for line in block.splitlines()]
TRANSCRIPTS = re.findall(r"^\$ (.*)$", README, re.MULTILINE)

# Weights from the hub, and a device that is not here: what the README says of their errors is checked instead.
OFFLINE = ("make export MODEL=whisper-tiny",)
# Of the make that runs the tests: its ARGS are not these commands'.
_OF_MAKE = ("MAKEFLAGS", "MFLAGS", "ARGS")
NO_DEVICE = tuple(command for command in COMMANDS if "DEVICE=npu:" in command)


@pytest.fixture(scope="module")
def clone(pocket_artifact: Path, sed_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with the environment that runs this test as its .venv, and the pocket models exported."""
    folder = tmp_path_factory.mktemp("readme") / "atlasport"
    keep_out = shutil.ignore_patterns(".git", ".venv", "artifacts", "__pycache__", ".*_cache", ".hypothesis", ".cache")
    shutil.copytree(REPOSITORY, folder, ignore=keep_out)
    for artifact in (pocket_artifact, sed_artifact):
        shutil.copytree(artifact, folder / "artifacts" / artifact.parent.name / "fp32")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def run(command: str, clone: Path) -> subprocess.CompletedProcess[str]:
    # -o: the environment is there and needs no installing.
    command = re.sub(r"^make ", "make -o .venv/.export -o .venv/.dev -o .venv/.bench ", command)
    environment = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_CACHE": str(clone / "empty"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }
    for name in _OF_MAKE:
        environment.pop(name, None)
    return subprocess.run(
        ["bash", "-c", command], cwd=clone, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.slow
def test_the_commands_in_their_order(clone: Path) -> None:
    special = (*OFFLINE, *NO_DEVICE)
    commands = [command for command in COMMANDS if command not in special]
    assert len(commands) >= 10
    for command in commands:
        done = run(command, clone)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert sorted(path.name for path in (clone / "subtitles").iterdir()) == [
        "joined_en.json",
        "joined_en.srt",
        "long_en.json",
        "long_en.srt",
        "short_en.json",
        "short_en.srt",
    ]
    assert (clone / "sounds" / "sed_2.html").is_file()
    assert (clone / "artifacts" / "my-whisper" / "bf16" / "report.html").is_file()
    assert (clone / "times" / "short_en_3.vtt").is_file()
    assert '"active": "1.0.0"' in (clone / "box" / "state.json").read_text()
    assert {path.suffix for path in (clone / "bench" / "results").iterdir()} == {".json", ".md", ".svg"}


def test_the_hub_cannot_be_reached(clone: Path) -> None:
    for command in OFFLINE:
        assert command in COMMANDS
        done = run(command, clone)
        assert done.returncode != 0
        line = next(line for line in done.stderr.splitlines() if line.startswith("atlasport: "))
        for alternative in ("folder", "random", "HF_ENDPOINT"):
            assert alternative in line


def test_no_npu(clone: Path) -> None:
    assert len(NO_DEVICE) == 3
    for command in NO_DEVICE:
        done = run(command, clone)
        assert done.returncode != 0
        assert "Error 3" in done.stderr
        assert "npu:0" in done.stdout + done.stderr


def test_ci_runs_the_transcripts_commands() -> None:
    assert TRANSCRIPTS[:2] == ["make demo", "make test"]
    steps = (REPOSITORY / ".ci" / "run").read_text().splitlines()
    for command in (*TRANSCRIPTS[:2], "make test-real", "make test-slow"):
        assert command in steps


def test_the_table_of_models_is_the_registrys() -> None:
    rows = re.findall(r"^\| ([\w.-]+) \| [^|]*\| ([\d.,]+) M \| ([\w.-]+) \|", README, re.MULTILINE)
    assert rows == [(entry.name, f"{entry.parameters / 1e6:,.1f}", entry.licence) for entry in MODELS.values()]


def test_what_the_readme_names_exists() -> None:
    for path in re.findall(r"(?<![/\w])(?:runtime|export|artifacts|pocket|bench)/[\w/.-]+\.(?:py|md)", README):
        assert (REPOSITORY / path).is_file(), path
