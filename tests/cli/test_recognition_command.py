"""`run` and `serve-dir` have the options of every family, and know none before they are asked."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from atlasport.cli import app
from runtime.families import FAMILIES, family_named


def test_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, atlasport.cli; print(*{'pydantic', 'numpy', 'torch', 'rich.console'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize("command", ["run", "serve-dir"])
def test_help_has_every_flag_once_in_its_familys_panel(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    lines = shown.splitlines()
    # A line with a flag, or the title of a panel above it.
    place = "Options"
    panels: dict[str, str] = {}
    for line in lines:
        words = line.strip("\u2502 *").split()
        if line.startswith("\u256d"):
            place = line.strip("\u256d\u2500\u256e ")
        elif words and words[0].startswith("--"):
            assert words[0] not in panels
            panels[words[0]] = place
    owners: dict[str, list[str]] = {}
    for family in map(family_named, FAMILIES):
        for flag in family.options.flags():
            owners.setdefault(flag, []).append(f"{family.kind} ({family.title})")
    for flag, known in owners.items():
        expected = (
            known[0] if len(known) == 1 else "Options" if len(known) == len(FAMILIES) else "Speech (several families)"
        )
        assert panels[flag] == expected, flag
    assert "Default: host." in " ".join(shown.split())


def test_switches_have_their_opposite() -> None:
    shown = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).stdout
    assert all(f"--no-{name}" in shown for name in ("timestamps", "repetition-guard", "draft"))
