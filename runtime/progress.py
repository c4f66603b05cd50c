"""How far a long run is: a bar or the current step on a terminal, an occasional line in a log. All goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich import progress as rich_progress

LINE_EVERY_S = 30.0


class Progress(Protocol):
    """Is told how much is done."""

    def update(self, completed: float, total: float | None = None) -> None:
        """Set what is done, and the whole where it was not known before."""


@contextmanager
def progress(total: float, description: str) -> Iterator[Progress]:
    """Show how much of `total` is done, in any unit.

    On a terminal a bar that disappears at the end; elsewhere a line every 30 s, so that short runs print nothing.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Percentages(total, description)
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console, transient=True) as bar:
        yield _Bar(bar, bar.add_task(description, total=total))


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Show the step that a run is at; the caller says each step's name when it begins, or its result.

    On a terminal one line that changes and disappears at the end; elsewhere a line every 30 s.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines().say
        return
    with console.status("") as status:

        def show(step: str) -> None:
            text = Text(step)
            text.truncate(console.width - len("* ") - 1, overflow="ellipsis")
            status.update(text)

        yield show


class _Bar:
    """A bar of rich."""

    def __init__(self, bar: rich_progress.Progress, task: rich_progress.TaskID) -> None:
        self._bar = bar
        self._task = task

    def update(self, completed: float, total: float | None = None) -> None:
        self._bar.update(self._task, completed=completed, total=total)


class _Lines:
    """A line on stderr, never sooner than 30 s after the one before."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def say(self, line: str) -> None:
        now = time.monotonic()
        if now - self._last >= LINE_EVERY_S:
            self._last = now
            print(line, file=sys.stderr, flush=True)  # noqa: T201


class _Percentages:
    """Lines that say how much is done."""

    def __init__(self, total: float, description: str) -> None:
        self._lines = _Lines()
        self._total = total
        self._description = description

    def update(self, completed: float, total: float | None = None) -> None:
        self._total = self._total if total is None else total
        if self._total > 0:
            self._lines.say(f"{self._description}: {completed / self._total:.0%}")
