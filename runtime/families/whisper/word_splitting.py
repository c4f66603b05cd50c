"""Words of tokens, as openai-whisper splits them (`tokenizer.py`) and merges punctuation marks (`timing.py`)."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Languages that set no spaces between words.
UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
OPENING, CLOSING = "\"'\u201c\u00bf([{-", "\"'.\u3002,\uff0c!\uff01?\uff1f:\uff1a\u201d)]}\u3001"
_INCOMPLETE = "\ufffd"

Decode = Callable[[Sequence[int]], str]
Split = list[tuple[str, list[int]]]


@dataclass
class TimedWord:
    """A word with the space before it; seconds from the features' start. Without text: it was merged into another."""

    text: str
    tokens: list[int]
    start: float
    end: float
    probability: float


def split_words(tokens: Sequence[int], decode: Decode, language: str) -> Split:
    """Return the words of a text with their tokens.

    In languages without spaces they are the fewest tokens that make whole characters; in others a space, or a
    punctuation mark, begins one.
    """
    parts = _split_characters(tokens, decode)
    if language in UNSPACED:
        return parts
    words: Split = []
    for text, part in parts:
        if not words or text.startswith(" ") or text.strip() in string.punctuation:
            words.append((text, part))
        else:
            before, those = words[-1]
            words[-1] = (before + text, those + part)
    return words


def _split_characters(tokens: Sequence[int], decode: Decode) -> Split:
    """Return the fewest tokens at a time that are whole characters, or bytes that never make one."""
    whole = decode(tokens)
    parts: Split = []
    part: list[int] = []
    place = 0
    for token in tokens:
        part.append(token)
        text = decode(part)
        at = place + text.find(_INCOMPLETE)
        if _INCOMPLETE not in text or whole[at : at + 1] == _INCOMPLETE:
            parts.append((text, part))
            place += len(text)
            part = []
    return parts


def merge_punctuation(words: Sequence[TimedWord]) -> None:
    """Give marks that open something to the word behind them, others to the word before; what was given is emptied."""
    behind = len(words) - 1
    for place in range(len(words) - 2, -1, -1):
        mark = words[place]
        if mark.text.startswith(" ") and mark.text.strip() in OPENING:
            _give(mark, words[behind], mark.text + words[behind].text, mark.tokens + words[behind].tokens)
        else:
            behind = place
    before = 0
    for place in range(1, len(words)):
        mark, word = words[place], words[before]
        if not word.text.endswith(" ") and mark.text in CLOSING:
            _give(mark, word, word.text + mark.text, word.tokens + mark.tokens)
        else:
            before = place


def _give(mark: TimedWord, word: TimedWord, text: str, tokens: list[int]) -> None:
    word.text, word.tokens = text, tokens
    mark.text, mark.tokens = "", []
