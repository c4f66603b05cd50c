"""What `atlasport run --profile` writes and shows."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import EnvironmentNotFitError, InputError

if TYPE_CHECKING:
    from runtime.engines.profile import OperatorTime, Profile

# Operators that the table shows of a graph; the others are one line.
_SHOWN = 8


class TraceFile:
    """The file for the trace, which appears whole or not at all.

    Parameters
    ----------
    path : Path
        Its name ends in .json.

    Raises
    ------
    InputError
        No such name, or in no folder.
    EnvironmentNotFitError
        The folder may not be written.

    """

    def __init__(self, path: Path) -> None:
        if path.suffix != ".json":
            raise InputError(f"--profile {path}: expected a name that ends in .json; rename it")
        if not path.parent.is_dir():
            raise InputError(f"--profile {path}: expected a folder {path.parent}, found none; make it first")
        if path.exists() and not path.is_file():
            raise InputError(f"--profile {path}: expected a file or nothing there, found something else; rename it")
        try:
            with tempfile.TemporaryFile(dir=path.parent):  # has no name, so it is never left behind
                pass
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise EnvironmentNotFitError(
                f"--profile {path}: expected a folder that can be written, found {reason}; choose another"
            ) from error
        self._path = path

    def write(self, profile: Profile) -> None:
        """Write the trace, and the table to stderr."""
        partial = self._path.with_name(f".{self._path.name}.partial")
        try:
            partial.write_bytes(profile.trace)
            partial.replace(self._path)
        finally:
            partial.unlink(missing_ok=True)
        _show(profile, self._path)


def _show(profile: Profile, path: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    on_device = any(time.device_s for time in profile.times)
    table = Table(box=None, pad_edge=False)
    for header in ("graph, operator", "calls", "ms", "share", *(["device ms"] if on_device else [])):
        table.add_column(header, overflow="fold", justify="left" if "," in header else "right")
    by_graph: dict[str, list[OperatorTime]] = {}
    for time in profile.times:
        by_graph.setdefault(time.graph, []).append(time)
    whole = sum(time.host_s for time in profile.times)

    def add(name: str, calls: int, times: Sequence[OperatorTime]) -> None:
        host, device = sum(time.host_s for time in times), sum(time.device_s for time in times)
        cells = [name, f"{calls}", f"{host * 1e3:.1f}", f"{host / (whole or 1):.1%}"]
        table.add_row(*map(Text, [*cells, *([f"{device * 1e3:.1f}"] if on_device else [])]))

    for graph, times in sorted(by_graph.items(), key=lambda item: -_seconds(item[1])):
        operators = sorted((time for time in times if time.operator), key=lambda time: -_seconds([time]))
        own = next(time for time in times if not time.operator)
        add(graph, own.calls, times)
        for time in operators[:_SHOWN]:
            add(f"  {time.operator}", time.calls, [time])
        if rest := operators[_SHOWN:]:
            add(f"  {len(rest)} others", sum(time.calls for time in rest), rest)
        add("  between operators", own.calls, [own])
    console = Console(stderr=True, highlight=False)
    console.print(table)
    remark = f"; {profile.remark}" if profile.remark else ""
    console.print(
        f"trace: {path}, for https://ui.perfetto.dev or chrome://tracing{remark}",
        soft_wrap=True,
        markup=False,
    )


def _seconds(times: Sequence[OperatorTime]) -> float:
    return sum(time.host_s + time.device_s for time in times)
