"""What openai/whisper keeps in its code, for checkpoints without files about it: front-end, and what is never said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

from runtime.families.whisper.settings import WhisperDims, WhisperFrontend

_HOP_LENGTH = 160
# A first timestamp of at most 1 s.
MAX_INITIAL_TIMESTAMP_INDEX = 50
# What openai/whisper takes for no speech: brackets, notes, speaker tags. Both as they are and after a space.
_SYMBOLS = (
    *'"#()*+/:;<=>@[\\]^_`{|}~\u300c\u300d\u300e\u300f',
    *("<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("', "((", "))", "(((", ")))", "[[", "]]", "{{", "}}"),
    *("\u266a" * 2, "\u266a" * 3),
)
# Of these the first token is suppressed where there are several: it begins no other kind of character.
_NOTES = "\u2669\u266a\u266b\u266c\u266d\u266e\u266f"
# Dashes and quotes are suppressed at the beginning of a word alone.
_WORD_STARTS = (" -", " '")


def openai_frontend(dims: WhisperDims) -> WhisperFrontend:
    """Return openai/whisper's log-mel front-end for a network."""
    return WhisperFrontend(hop_length=_HOP_LENGTH, n_mels=dims.n_mels, n_samples=dims.n_frames * _HOP_LENGTH)


def openai_rules(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return openai/whisper's rules by the names that transformers gives them.

    Never said are tokens of no speech and special ones that are no text; at the beginning also a blank and the end.
    """
    special = ("startoftranscript", "translate", "transcribe", "startoflm", "startofprev", "nospeech", "nocaptions")
    return {
        "suppress_tokens": sorted({*_no_speech(tokenizer), *_special(tokenizer, special)}),
        "begin_suppress_tokens": [*_encode(tokenizer, " "), *_special(tokenizer, ("endoftext",))],
        "max_initial_timestamp_index": MAX_INITIAL_TIMESTAMP_INDEX,
    }


def _no_speech(tokenizer: Tokenizer) -> set[int]:
    found = {_encode(tokenizer, text)[0] for text in _WORD_STARTS}
    for symbol in (*_SYMBOLS, *_NOTES):
        for ids in (_encode(tokenizer, symbol), _encode(tokenizer, f" {symbol}")):
            if len(ids) == 1 or symbol in _NOTES:
                found.add(ids[0])
    return found


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _special(tokenizer: Tokenizer, names: Iterable[str]) -> list[int]:
    found = (tokenizer.token_to_id(f"<|{name}|>") for name in names)
    return [number for number in found if number is not None]
