"""Makes text of people and files harmless where Markdown, a terminal or a log shows it."""

from __future__ import annotations

import unicodedata

# Overrides and isolates; the marks that Arabic and Hebrew are written with are not among them.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def cell(text: object) -> str:
    """Return text as it may stand in a cell of a Markdown table: what somebody spoke or named cannot break out."""
    line = one_line(text)
    for special in ("\\", "|", "<", "*", "_", "`", "[", "]", "#", "~", "$"):
        line = line.replace(special, f"\\{special}" if special != "<" else "&lt;")
    return line


def code(text: object) -> str:
    """Return text as it may stand between backticks in a line of Markdown."""
    return one_line(text).replace("`", "'").replace("|", "/")


def one_line(text: object) -> str:
    """Return text without line breaks, and without what changes a terminal or the direction of other text."""
    line = " ".join(str(text).split())
    return "".join(
        character for character in line if unicodedata.category(character) != "Cc" and character not in _BIDI
    )
