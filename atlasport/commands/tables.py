"""Tables that fit the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_GAP = 2


def print_table(
    console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]], give_way: Sequence[str]
) -> None:
    """Print a table whose words stay whole: cells wrap between words, and whole columns give way.

    Parameters
    ----------
    console : Console
        Its width is the table's.
    headers : sequence of str
        The columns' names. The first column never wraps: it is what a person types.
    rows : sequence of sequence of str
        The cells.
    give_way : sequence of str
        Columns that may be left out, the first one first.

    """
    from rich.table import Table
    from rich.text import Text

    columns = dict(zip(headers, zip(*rows, strict=True), strict=True))
    widths = {name: _longest(cells, whole=name == headers[0]) for name, cells in columns.items()}
    left_out: list[str] = []
    for name in give_way:
        if sum(max(widths[kept], _longest([kept])) + _GAP for kept in columns) - _GAP <= console.width:
            break
        del columns[name]
        left_out.append(name)
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=name == headers[0], overflow="fold", min_width=widths[name])
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    console.print(table, soft_wrap=False)
    if left_out:
        console.print(f"left out: {', '.join(left_out)}; see --json or a wider terminal", soft_wrap=False)


def _longest(cells: Sequence[str], *, whole: bool = False) -> int:
    """Return the length of the longest word, or of the longest cell."""
    return max((len(part) for cell in cells for part in ([cell] if whole else cell.split())), default=0)
