"""How far a text is from what a person says was spoken: word and character error rates.

For export and verify: jiwer, which computes them, is not among a box's packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Beyond it a text is not what was said: another language, another task, or nothing at all.
LARGEST_RATE = 0.5
# Written without spaces between words: "words" would be whole sentences.
_UNSPACED = frozenset({"bo", "ja", "km", "lo", "my", "th", "yue", "zh"})


@dataclass(frozen=True)
class ErrorRate:
    """Errors per word (`WER`) or per character (`CER`) of the `length` that were spoken; may exceed 1."""

    kind: Literal["WER", "CER"]
    value: float
    length: int


@dataclass(frozen=True)
class ErrorCounts:
    """Errors, substitutions, deletions and insertions together, of the words and of the characters that were spoken."""

    word_errors: int
    words: int
    character_errors: int
    characters: int


def error_counts(reference: str, text: str) -> ErrorCounts:
    """Return what `error_rates` divides; where nobody spoke, each word that was heard is an error."""
    import jiwer

    said, heard = _plain(reference), _plain(text)
    words, characters = jiwer.process_words(said, heard), jiwer.process_characters(said, heard)
    return ErrorCounts(
        word_errors=words.substitutions + words.deletions + words.insertions,
        words=len(said.split()),
        character_errors=characters.substitutions + characters.deletions + characters.insertions,
        characters=len(said),
    )


def has_words(language: str | None) -> bool:
    """Return whether a language, as far as it is known, is written with spaces between words."""
    return language not in _UNSPACED


def error_rates(reference: str, text: str) -> tuple[float, float] | None:
    """Return word and character error rate of `text`, or None where the reference has no words.

    Both texts are lower-cased and lose punctuation and repeated spaces first.
    """
    import jiwer

    said, heard = _plain(reference), _plain(text)
    if not said:
        return None
    return float(jiwer.wer(said, heard)), float(jiwer.cer(said, heard))


def error_rate(reference: Mapping[str, Any] | None, text: str) -> ErrorRate | None:
    """Return the rate that a text in a recording's language is judged by; None where nothing is known to be said.

    Parameters
    ----------
    reference : mapping or None
        `Recording.reference`: `text`, and `language` where it is known.
    text : str
        What a model wrote.

    """
    said = (reference or {}).get("text")
    rates = error_rates(said, text) if said else None
    if reference is None or rates is None:
        return None
    plain = _plain(str(said))
    if not has_words(reference.get("language")):
        return ErrorRate("CER", rates[1], len(plain))
    return ErrorRate("WER", rates[0], len(plain.split()))


def _plain(text: str) -> str:
    import jiwer

    clean = jiwer.Compose([jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.RemoveMultipleSpaces(), jiwer.Strip()])
    return str(clean(text))
