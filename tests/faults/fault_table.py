"""docs/faults.json as a table between two marks of a Markdown file: no number in it is typed in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

START, END = "<!-- faults: written by `make readme` -->", "<!-- end of faults -->"


def table(results: Mapping[str, Any]) -> str:
    """Return the table of a campaign, with a line that says which one it was."""
    lines = ["| fault | tried | outcome | violations |", "| --- | --- | --- | --- |"]
    for row in results["rows"]:
        outcomes = "; ".join(f"{what}: {count:,}" for what, count in row["outcomes"].items())
        lines.append(f"| {row['fault']} | {row['tried']:,} | {outcomes} | {len(row['violations']):,} |")
    machine = results["machine"]
    said = (
        f"{results['date']}, atlasport {results['versions']['atlasport']} ({results['commit']}), "
        f"Python {results['versions']['python']}, {machine['system']}, {machine['cores']} cores, "
        f"seed {results['seed']}: "
        f"`{results['command']}`, {results['seconds'] / 60:,.0f} minutes"
    )
    return "\n".join([*lines, "", said])


def write_table(markdown: Path, source: Path) -> None:
    """Write the table of `source` between the marks of `markdown`."""
    before, start, rest = markdown.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        message = f"{markdown}: expected the marks {START!r} and {END!r}, found none; add them where the table goes"
        raise SystemExit(message)
    results = json.loads(source.read_text(encoding="utf-8"))
    markdown.write_text(f"{before}{START}\n{table(results)}\n{END}{after}", encoding="utf-8")
