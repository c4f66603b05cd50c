"""What people wrote into a README that publish wrote: the text between its marks stays when it is written again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from runtime.errors import InputError

Language = Literal["en", "zh"]
# Places in a README, in their order.
BLOCKS = ("introduction", "results", "end")
WRITTEN = re.compile(r"<!-- written by atlasport publish \((en|zh)\)")
_START = re.compile(r"^<!-- yours: ([^>]*?) -->[ \t]*$", re.MULTILINE)
_END = "<!-- end of yours -->"
# A line of its own: a flag or a name that reads like it is none.
_END_LINE = re.compile(rf"^{_END}[ \t]*$", re.MULTILINE)


def kept_blocks(folder: Path) -> dict[Language, dict[str, str]]:
    """Return by language and place what stands between the marks of the READMEs in a folder.

    Raises
    ------
    InputError
        A README was not written by publish, or text in it would be lost.

    """
    kept: dict[Language, dict[str, str]] = {}
    for path in sorted(folder.glob("README*.md")):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: expected text in UTF-8, found other bytes; move it away") from error
        written = WRITTEN.search(text)
        if written is None:
            if path.name in {"README.md", "README.en.md", "README.zh-CN.md"}:
                raise InputError(f"{path}: was not written by `atlasport publish` and would be lost; move it away")
            continue
        language: Language = "zh" if written[1] == "zh" else "en"
        kept.setdefault(language, {}).update(_blocks(path, text))
    return kept


def _blocks(path: Path, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    starts = list(_START.finditer(text))
    ends = list(_END_LINE.finditer(text))
    if len(starts) != len(ends):
        raise InputError(f"{path}: expected an {_END!r} behind every '<!-- yours: ... -->'; put the marks back")
    for start, end, following in zip(starts, ends, [*starts[1:], None], strict=True):
        if end.start() < start.end() or (following and following.start() < end.start()):
            raise InputError(f"{path}: expected {_END!r} before the next '<!-- yours: ... -->'; put the marks back")
        if start[1] not in BLOCKS or start[1] in found:
            raise InputError(
                f"{path}: expected one block each of {', '.join(BLOCKS)}, found {start[1]!r}; move its text into one"
            )
        found[start[1]] = text[start.end() : end.start()].strip("\n")
    return found
