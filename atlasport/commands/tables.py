"""Tables that fit the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_GAP = 2


def print_table(
    console: Console,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    wrapping: Collection[str],
    give_way: Sequence[str],
) -> None:
    """Print a table that fits: some columns wrap, between words, and where that is not enough whole columns give way.

    Parameters
    ----------
    console : Console
        Its width is the table's.
    headers : sequence of str
        The columns' names.
    rows : sequence of sequence of str
        The cells.
    wrapping : collection of str
        Columns whose cells may take several lines; what a person types is in none of them.
    give_way : sequence of str
        Columns that may be left out, the first one first.

    """
    from rich.table import Table
    from rich.text import Text

    columns = {name: (name, *cells) for name, cells in zip(headers, zip(*rows, strict=True), strict=True)}
    widths = {name: _longest(cells, whole=name not in wrapping) for name, cells in columns.items()}
    left_out: list[str] = []
    for name in give_way:
        if sum(widths.values()) + _GAP * (len(widths) - 1) <= console.width:
            break
        del columns[name], widths[name]
        left_out.append(name)
    wanted = {name: max(map(len, cells)) for name, cells in columns.items()}
    for _ in range(console.width - sum(widths.values()) - _GAP * (len(widths) - 1)):
        tightest = max(columns, key=lambda name: wanted[name] / widths[name])
        widths[tightest] += wanted[tightest] > widths[tightest]
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", width=widths[name])
    for row in list(zip(*columns.values(), strict=True))[1:]:
        table.add_row(*map(Text, row))
    console.print(table, soft_wrap=False)
    if left_out:
        console.print(f"left out: {', '.join(left_out)}; see --json or a wider terminal", soft_wrap=False)


def _longest(cells: Sequence[str], *, whole: bool = False) -> int:
    """Return the length of the longest word, or of the longest cell."""
    return max((len(part) for cell in cells for part in ([cell] if whole else cell.split())), default=0)
