"""docs/npu.md: the programs take its commands, doctor prints its transcript, its facts are the code's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from npu_simulator import SITE

from atlasport.cli import app
from runtime.ascend import CANN_OF_TORCH_NPU, VARIABLES

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = (REPOSITORY / "docs" / "npu.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]
# Of the machine, not of this project.
FOREIGN = {
    "python -m pip install --editable '.[torch,verify]'",
    "source /usr/local/Ascend/ascend-toolkit/set_env.sh",
}


def test_every_command_is_ours_or_known() -> None:
    commands = set(COMMANDS)
    assert {command for command in commands if command.split()[0] not in {"atlasport", "make"}} == FOREIGN
    assert len(commands) > 15


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("atlasport ")])
def test_the_command_line_takes_it(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    # Parses and checks every option and argument, and runs nothing.
    typer.main.get_command(app).commands[name].make_context(name, arguments)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make_has_it(command: str) -> None:
    done = subprocess.run(
        [*shlex.split(command), "--dry-run"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    _, target, *variables = shlex.split(command)
    ours = next(line for line in done.stdout.splitlines() if re.search(rf"atlasport'? {target} ", line))
    for variable in variables:
        assert variable.partition("=")[2] in ours


def test_make_doctor_runs_without_a_venv(pocket_artifact: Path, tmp_path: Path) -> None:
    """As on an Atlas machine, whose Python has torch_npu."""
    done = subprocess.run(
        [
            "make",
            "--no-print-directory",
            "doctor",
            f"VENV={tmp_path}",
            f"PYTHON={sys.executable}",
            f"ARGS=--root {pocket_artifact.parents[1]}",
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(SITE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "cpu: fit"
    assert list(tmp_path.iterdir()) == []


def test_the_transcript_is_what_doctor_prints(pocket_artifact: Path) -> None:
    (transcript,) = re.findall(r"^```console\n\$ (.*?)\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
    command, expected = transcript
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ASCEND")}
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command), "--root", pocket_artifact.parents[1]],
        cwd=REPOSITORY,
        env={**environment, "COLUMNS": "120", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert [line.split() for line in done.stdout.splitlines()] == [line.split() for line in expected.splitlines()]


def test_the_facts_are_those_of_the_code() -> None:
    pairs = re.findall(r"^\| (\d[\w.]*) \| [\d.]+ \| ([\d.]+) \|", DOCS, re.MULTILINE)
    assert len(pairs) >= 5
    assert {wheel: CANN_OF_TORCH_NPU[wheel] for wheel, _ in pairs} == dict(pairs)
    for variable in VARIABLES:
        assert variable in DOCS


def test_what_it_names_exists() -> None:
    paths = re.findall(r"\b(?:runtime|tests|docs)/[\w/]+(?:\.\w+)?", DOCS)
    assert len(paths) >= 4
    for path in paths:
        assert (REPOSITORY / path).exists(), path


def test_it_says_that_it_was_not_run_on_hardware() -> None:
    assert "Not run on hardware by this project" in DOCS.split("##")[0]
