"""What the trainings share on the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from runtime.errors import AtlasportError, InputError


def check_new(out: Path) -> None:
    """Refuse a folder that holds something already.

    Raises
    ------
    InputError
        It does.

    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"expected an empty or new folder, found files in {out}; choose another with --out")


def timed_progress() -> Callable[[str], None]:
    """Return what prints a line with the seconds since now."""
    begun, console = time.monotonic(), Console()

    def progress(line: str) -> None:
        console.print(f"{time.monotonic() - begun:7.0f} s  {line}", highlight=False)

    return progress


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error that a user can act on as one line, and leave with its exit code."""
    try:
        yield
    except AtlasportError as error:
        Console(stderr=True).print(str(error), highlight=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from error
