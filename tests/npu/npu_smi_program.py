"""Puts a program named npu-smi on PATH that prints what a real one printed."""

from __future__ import annotations

import shlex
from pathlib import Path

SAMPLES = Path(__file__).parent / "npu_smi"


def printed(name: str) -> str:
    """What a sample's npu-smi printed, without the line that names the layout."""
    first, _, rest = (SAMPLES / name).read_text(encoding="utf-8").partition("\n")
    assert first.startswith("# ")
    return rest


def write_program(folder: Path, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "npu-smi"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    return folder


def printing(folder: Path, table: str, board: str = "") -> Path:
    """Write a program that prints `table` for `info` and `board` for `info -t board ...`; returns its folder."""
    return write_program(
        folder,
        f'case "$*" in\n'
        f"info) printf %s {shlex.quote(table)} ;;\n"
        f'"info -t board -i "*) printf %s {shlex.quote(board)} ;;\n'
        f"*) echo unknown arguments >&2; exit 2 ;;\nesac",
    )
