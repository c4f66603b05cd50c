"""Texts side by side, with what differs marked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """One line of the side-by-side texts; `parts` are (kind, words) with kind same, added or removed."""

    who: str
    parts: tuple[tuple[str, str], ...]
    remark: str


def marked(golden: str, text: str, *, strict: bool) -> tuple[tuple[str, str], ...]:
    """Return `text` word by word against `golden`: what is the same, added or removed.

    Unless `strict`, case and punctuation do not count.
    """
    before, after = golden.split(), text.split()
    plain = list if strict else _plain
    matcher = difflib.SequenceMatcher(a=plain(before), b=plain(after), autojunk=False)
    parts = []
    for kind, i, j, k, m in matcher.get_opcodes():
        if kind == "equal":
            parts.append(("same", " ".join(after[k:m])))
            continue
        if j > i:
            parts.append(("removed", " ".join(before[i:j])))
        if m > k:
            parts.append(("added", " ".join(after[k:m])))
    return tuple(parts) or (("same", ""),)


def _plain(words: Iterable[str]) -> list[str]:
    return ["".join(c for c in word.casefold() if c.isalnum()) or word for word in words]
