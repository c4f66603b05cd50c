"""What openai/whisper keeps in its code: front-end, special tokens, languages, and what is never said.

For checkpoints that have no files about them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from runtime.errors import InputError
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend, WhisperSettings

TOKENIZER_FILE = "tokenizer.json"
_TASKS = ("transcribe", "translate")
_LANGUAGE = re.compile(r"<\|(.+)\|>")
# The end token of GPT-2's vocabulary, which OpenAI's English-only models have. They have the languages' tokens, too.
_GPT2_END = 50256
_HOP_LENGTH = 160
# A first timestamp of at most 1 s.
_MAX_INITIAL_TIMESTAMP_INDEX = 50
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


def read_tokenizer(folder: Path) -> bytes:
    """Return the tokenizer.json of a folder.

    Raises
    ------
    InputError
        There is none, or it is no tokenizer.

    """
    path = folder / TOKENIZER_FILE
    try:
        data = path.read_bytes()
        Tokenizer.from_str(data.decode())
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: not found; give the model's tokenizer with --tokenizer, a folder or a hub id such as "
            "openai/whisper-tiny (openai/whisper-tiny.en for an English-only model)"
        ) from error
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: expected a tokenizer of the tokenizers library ({error}); get it again") from error
    return data


def is_english_only(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer is that of an English-only model: GPT-2's vocabulary, with its end token."""
    return bool(tokenizer.token_to_id("<|endoftext|>") == _GPT2_END)


def openai_settings(
    tokenizer: Tokenizer,
    dims: WhisperDims,
    where: str,
    *,
    suppress: Sequence[int],
    begin_suppress: Sequence[int],
    languages: Collection[int] | None = None,
) -> WhisperSettings:
    """Return the special tokens of a tokenizer in OpenAI's layout, with the given rules.

    Parameters
    ----------
    tokenizer : Tokenizer
        It need not hold the timestamps: they follow its last special token.
    dims : WhisperDims
        The network; a timestamp for each encoder frame and one for the window's end have to fit its vocabulary.
    where : str
        The checkpoint, for errors.
    suppress, begin_suppress : Sequence[int]
        Tokens that are never said, and never at the beginning.
    languages : Collection[int] or None
        Tokens of the languages that a multilingual model has; None for all of the tokenizer's.

    Raises
    ------
    InputError
        The tokenizer lacks a special token, or is of another network.

    """

    def token(text: str) -> int:
        number = tokenizer.token_to_id(text)
        if number is None or number >= dims.n_vocab:
            raise InputError(
                f"{where}: expected the tokenizer to have {text} below {dims.n_vocab}, found {number}; "
                "it is of another model, give this model's with --tokenizer"
            )
        return int(number)

    sot, no_timestamps = token("<|startoftranscript|>"), token("<|notimestamps|>")
    tasks = {} if is_english_only(tokenizer) else {name: token(f"<|{name}|>") for name in _TASKS}
    between = range(sot + 1, min(tasks.values(), default=0))
    found = {number: _LANGUAGE.fullmatch(tokenizer.id_to_token(number) or "") for number in between}
    codes = {number: code[1] for number, code in found.items() if code and (languages is None or number in languages)}
    if tasks and not codes:
        raise InputError(
            f"{where}: expected tokens of languages after <|startoftranscript|>, found none; "
            "the tokenizer is of another model, give this model's with --tokenizer"
        )
    needed = no_timestamps + 1 + dims.n_audio_ctx + 1
    if needed > dims.n_vocab:
        raise InputError(
            f"{where}: expected a tokenizer for a vocabulary of {dims.n_vocab}, found one for at least {needed}; "
            "it is of another model, give this model's with --tokenizer"
        )
    outside = [number for number in (*suppress, *begin_suppress) if not 0 <= number < dims.n_vocab]
    if outside:
        raise InputError(
            f"{where}: expected suppressed tokens below the vocabulary's {dims.n_vocab}, found {outside[0]}; "
            "its config.json is of another model"
        )
    return WhisperSettings(
        sot=sot,
        eot=token("<|endoftext|>"),
        sot_prev=token("<|startofprev|>"),
        no_speech=no_timestamps - 1,
        no_timestamps=no_timestamps,
        timestamp_begin=no_timestamps + 1,
        languages={code: number for number, code in codes.items()},
        tasks=tasks,
        suppress_tokens=tuple(suppress),
        begin_suppress_tokens=tuple(begin_suppress),
        max_initial_timestamp_index=_MAX_INITIAL_TIMESTAMP_INDEX,
        max_length=dims.n_text_ctx,
    )


def never_said(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that openai/whisper suppresses: those of no speech, and special ones that are no text."""

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    found = {encode(text)[0] for text in _WORD_STARTS}
    for symbol in (*_SYMBOLS, *_NOTES):
        for ids in (encode(symbol), encode(f" {symbol}")):
            if len(ids) == 1 or symbol in _NOTES:
                found.add(ids[0])
    special = ("startoftranscript", "translate", "transcribe", "startoflm", "startofprev", "nospeech", "nocaptions")
    return sorted({*found, *_special(tokenizer, special)})


def never_said_first(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens with which openai/whisper lets no text begin: a blank and the end."""
    return [*tokenizer.encode(" ", add_special_tokens=False).ids, *_special(tokenizer, ("endoftext",))]


def _special(tokenizer: Tokenizer, names: Iterable[str]) -> list[int]:
    found = (tokenizer.token_to_id(f"<|{name}|>") for name in names)
    return [number for number in found if number is not None]
