"""What openai/whisper keeps in its code: front-end, special tokens, languages, and what is never said.

For checkpoints that have no files about them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from runtime.errors import InputError
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend, WhisperSettings

TOKENIZER_FILE = "tokenizer.json"
_TASKS = ("transcribe", "translate")
_ANOTHER = "the tokenizer is another model's; give the right one by --tokenizer FOLDER or hub id"
# The end token of GPT-2's vocabulary, which OpenAI's English-only models have. They have the languages' tokens, too.
_GPT2_END = 50256
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


def read_tokenizer(folder: Path, base: str = "openai/whisper-tiny") -> Tokenizer:
    """Return the tokenizer of a folder; `base` is a model that has it, named where the folder has none.

    Raises
    ------
    InputError
        There is none, or it is damaged.

    """
    path = folder / TOKENIZER_FILE
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: expected {TOKENIZER_FILE}, found no tokenizer; give one by --tokenizer FOLDER or hub id, such "
            f"as --tokenizer {base}"
        ) from error
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: expected a tokenizer of the tokenizers library ({error}); get it again") from error


def is_english_only(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer is that of an English-only model: GPT-2's vocabulary, with its end token."""
    return bool(tokenizer.token_to_id("<|endoftext|>") == _GPT2_END)


def openai_settings(values: Mapping[str, Any], dims: WhisperDims, tokenizer: Tokenizer, where: str) -> WhisperSettings:
    """Return the special tokens of a tokenizer in OpenAI's layout, with the given rules.

    Parameters
    ----------
    values : Mapping[str, Any]
        `suppress_tokens`, `begin_suppress_tokens`, `max_initial_timestamp_index`, and `lang_to_id` where not all of the
        tokenizer's languages count.
    dims : WhisperDims
        The network; a timestamp for each encoder frame and one for the window's end have to fit its vocabulary.
    tokenizer : Tokenizer
        It need not hold the timestamps: they follow its last special token.
    where : str
        The checkpoint, for errors.

    Raises
    ------
    InputError
        The tokenizer lacks a special token, or is of another network.

    """

    def token(text: str) -> int:
        number = tokenizer.token_to_id(text)
        if number is None or number >= dims.n_vocab:
            raise InputError(
                f"{where}: expected the tokenizer to have {text} below {dims.n_vocab}, found {number}; {_ANOTHER}"
            )
        return int(number)

    sot, no_timestamps = token("<|startoftranscript|>"), token("<|notimestamps|>")
    tasks = {} if is_english_only(tokenizer) else {name: token(f"<|{name}|>") for name in _TASKS}
    between = range(sot + 1, min(tasks.values(), default=0))
    known = {text: number for number in between if (text := tokenizer.id_to_token(number))}
    languages = values.get("lang_to_id") or known if tasks else {}
    if tasks and not languages:
        raise InputError(f"{where}: expected languages behind <|startoftranscript|>, found none; {_ANOTHER}")
    needed = no_timestamps + 1 + dims.n_audio_ctx + 1
    if needed > dims.n_vocab:
        raise InputError(
            f"{where}: expected a tokenizer for a vocabulary of {dims.n_vocab}, found one for at least {needed}; "
            f"{_ANOTHER}"
        )
    outside = [
        number
        for number in (*values["suppress_tokens"], *values["begin_suppress_tokens"])
        if not 0 <= number < dims.n_vocab
    ]
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
        languages={text.strip("<|>"): number for text, number in languages.items()},
        tasks=tasks,
        suppress_tokens=tuple(values["suppress_tokens"]),
        begin_suppress_tokens=tuple(values["begin_suppress_tokens"]),
        max_initial_timestamp_index=values["max_initial_timestamp_index"],
        max_length=dims.n_text_ctx,
    )


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
