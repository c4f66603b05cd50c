"""docs/granite.md: the programs take its commands, and its facts are the code's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from atlasport.cli import app
from export.registry import MODELS
from runtime.families.granite_speech.languages import LANGUAGES
from runtime.families.granite_speech.options import LEAST_TOKENS, TOKENS_PER_S, GraniteOptions
from runtime.families.granite_speech.prompts import instruction
from runtime.families.granite_speech.settings import GraniteSettings
from runtime.repetition import MAX_PERIOD, MIN_REPEATS, MIN_TOKENS

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = (REPOSITORY / "docs" / "granite.md").read_text(encoding="utf-8")
# Its paragraphs are wrapped.
PROSE = " ".join(DOCS.split())
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]
OURS = [command for command in COMMANDS if command.startswith("atlasport ")]
PROMPTS = [re.split(r" +\| +", row.strip("| ")) for row in re.findall(r"^\| (?:`--|the same).*$", DOCS, re.MULTILINE)]


def test_every_command_is_ours() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"atlasport", "make"}
    assert len(OURS) > 10


@pytest.mark.parametrize("command", OURS)
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
    for variable in shlex.split(command)[2:]:
        assert variable.partition("=")[2] in done.stdout


@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "samples").symlink_to(REPOSITORY / "samples")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    for command in OURS:
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        expected = 3 if "npu:0" in command else 0
        assert done.returncode == expected, f"{command}\n{done.stdout}\n{done.stderr}"
        if command.startswith("atlasport verify"):
            stages = ", ".join(rf"{stage} \d+\.\d ms" for stage in ("frontend", "encoder", "prefill", "decode"))
            times = rf"RTF \d+\.\d{{3}}, \d+\.\d tokens/s, {stages}$"
            assert len(re.findall(times, done.stdout, re.MULTILINE)) == 2
    assert sorted(path.name for path in (tmp_path / "granite-text").iterdir()) == ["long_en.json", "long_en.srt"]


def test_its_prompts_are_those_that_are_asked() -> None:
    assert len(PROMPTS) == 6
    *prompts, (translated, words), (_, own) = PROMPTS
    assert own.startswith("TEXT")
    for options, expected in prompts:
        arguments = shlex.split(options.replace("(default)", "").replace("`", ""))
        given = dict(zip((name[2:] for name in arguments[::2]), arguments[1::2], strict=True))
        assert instruction(GraniteOptions.parse(given)) == expected
    assert translated == "the same with `--punctuation`"
    assert instruction(GraniteOptions.parse({"task": "translate", "to": "german", "punctuation": True})) == words


def test_its_facts_are_those_of_the_code() -> None:
    for code, name in LANGUAGES.items():
        assert f"{name} ({code})" in PROSE
    assert f"{TOKENS_PER_S} tokens for a second of it and at least {LEAST_TOKENS}" in PROSE
    assert f"the same 1 to {MAX_PERIOD} tokens {MIN_REPEATS} times in a row, {MIN_TOKENS} tokens at least" in PROSE
    assert f"longer than `--chunk` ({GraniteOptions().chunk_s:g} s)" in PROSE
    lengths = {name: GraniteSettings.model_fields[f"{name}_lengths"].default for name in ("prefill", "cache")}
    assert f"prompts to {lengths['prefill'][0]}, {lengths['prefill'][1]} ... {lengths['prefill'][-1]} tokens" in PROSE
    assert f"caches to {lengths['cache'][0]} ... {lengths['cache'][-1]} positions" in PROSE
    for name, entry in MODELS.items():
        assert (f"`{name}`" in DOCS) == (entry.family == "granite_speech"), name


def test_it_says_what_was_not_run() -> None:
    first, *_ = DOCS.split("##")
    assert "Trained weights were not run by this project" in first
    assert "Nor was any of it run on an NPU" in " ".join(first.split())
