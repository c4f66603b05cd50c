"""Scripts that set no spaces between words."""

from __future__ import annotations

import unicodedata


def is_unspaced(character: str) -> bool:
    """Tell whether a script sets no spaces between its words: wide characters, but for those of Korean."""
    return unicodedata.east_asian_width(character) in "WF" and not "\uac00" <= character <= "\ud7a3"


def gap(before: str, after: str) -> str:
    """Return what stands between two texts, given the characters on both sides ("" at the beginning)."""
    return "" if not before or (is_unspaced(before) and is_unspaced(after)) else " "
