"""Whisper's generation settings: what transformers takes from generation_config.json and from config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tokenizers import Tokenizer

from export.families.whisper.tokenizer import (
    GPT2_TOKENS,
    check_stated_ids,
    check_vocabulary,
    count_timestamps,
    special_token,
)
from export.json_files import read_json
from runtime.errors import InputError
from runtime.families.whisper.languages import language_code
from runtime.families.whisper.settings import WhisperDims, WhisperSettings

GENERATION_CONFIG = "generation_config.json"
# What transformers reads from generation_config.json alone, never from config.json.
_WHISPERS_OWN = (
    "compression_ratio_threshold",
    "condition_on_prev_tokens",
    "is_multilingual",
    "lang_to_id",
    "language",
    "logprob_threshold",
    "max_initial_timestamp_index",
    "no_speech_threshold",
    "no_timestamps_token_id",
    "prev_sot_token_id",
    "return_timestamps",
    "task",
    "task_to_id",
)
# Settings that change what transformers says and that export does not carry over, with the value that changes nothing.
NOT_HONOURED: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "min_length": 0,
    "min_new_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "penalty_alpha": None,
    "guidance_scale": None,
    "return_timestamps": False,
    "condition_on_prev_tokens": False,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}
_INSTEAD = {
    "num_beams": "the search is greedy",
    "return_timestamps": "give --timestamps",
    "condition_on_prev_tokens": "give --condition",
    "compression_ratio_threshold": "give --compression-ratio",
    "logprob_threshold": "give --logprob",
    "no_speech_threshold": "give --no-speech",
}
_TASKS = ("transcribe", "translate")
_LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")


def generation_values(folder: Path) -> tuple[dict[str, Any], str]:
    """Return a checkpoint's generation settings as transformers resolves them, and the file that they are from.

    They are those of generation_config.json, or where there is none those of config.json. With the former the latter
    does not count, but for `forced_decoder_ids`.
    """
    config = {key: value for key, value in read_json(folder / "config.json").items() if value is not None}
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        return {key: value for key, value in config.items() if key not in _WHISPERS_OWN}, "config.json"
    values = {key: value for key, value in read_json(path).items() if value is not None}
    if "forced_decoder_ids" in config:
        values.setdefault("forced_decoder_ids", config["forced_decoder_ids"])
    return values, GENERATION_CONFIG


def whisper_settings(values: Mapping[str, Any], dims: WhisperDims, tokenizer: Tokenizer, where: str) -> WhisperSettings:
    """Return a checkpoint's special tokens, decoding rules and defaults.

    Special tokens are the tokenizer's, and have to be those that `values` state. The no-speech token is the one before
    <|notimestamps|>, as transformers has it.

    Parameters
    ----------
    values : Mapping[str, Any]
        Generation settings, from `generation_values`; what they lack is read from the tokenizer.
    dims : WhisperDims
        The network.
    tokenizer : Tokenizer
        From `read_tokenizer`.
    where : str
        What is read, for messages.

    Raises
    ------
    InputError
        The tokenizer or the settings are of another model.

    """
    check_stated_ids(values, tokenizer, where)
    no_timestamps = special_token(tokenizer, "<|notimestamps|>", where)
    eot = special_token(tokenizer, "<|endoftext|>", where)
    languages, tasks = _languages_and_tasks(values, tokenizer, eot, where)
    language, task = _defaults(values, languages, tasks, where)
    try:
        settings = WhisperSettings(
            sot=special_token(tokenizer, "<|startoftranscript|>", where),
            eot=eot,
            sot_prev=special_token(tokenizer, "<|startofprev|>", where),
            no_speech=_no_speech(tokenizer, no_timestamps, where),
            no_timestamps=no_timestamps,
            timestamp_begin=no_timestamps + 1,
            n_timestamps=count_timestamps(tokenizer, no_timestamps + 1, dims, where),
            languages=languages,
            tasks=tasks,
            suppress_tokens=tuple(values.get("suppress_tokens") or ()),
            begin_suppress_tokens=tuple(values.get("begin_suppress_tokens") or ()),
            max_initial_timestamp_index=values.get("max_initial_timestamp_index"),
            max_length=min(values.get("max_length", dims.n_text_ctx), dims.n_text_ctx),
            max_new_tokens=values.get("max_new_tokens"),
            language=language,
            task=task,
        )
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{first['loc'][0]}: {first['msg']}, found {first['input']!r}"
        raise InputError(f"{where}: expected Whisper's generation settings ({reason}); correct it") from error
    except TypeError as error:
        raise InputError(f"{where}: expected Whisper's generation settings ({error}); correct it") from error
    check_vocabulary(tokenizer, settings, dims, where)
    outside = [n for n in (*settings.suppress_tokens, *settings.begin_suppress_tokens) if not 0 <= n < dims.n_vocab]
    if outside:
        raise InputError(
            f"{where}: expected token ids to suppress below vocab_size {dims.n_vocab}, found {outside[0]}; the "
            "settings are of another model"
        )
    return settings


def generation_notes(values: Mapping[str, Any], settings: WhisperSettings, where: str) -> tuple[str, ...]:
    """Return a line for each of the generation settings that the artifact does not honour."""
    notes = []
    for key, neutral in NOT_HONOURED.items():
        if values.get(key, neutral) != neutral:
            instead = f": {_INSTEAD[key]}" if key in _INSTEAD else ""
            notes.append(f"{where}: {key} {values[key]} is not honoured{instead}")
    ends = values.get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1:
        notes.append(f"{where}: of eos_token_id {ends} only {settings.eot} (<|endoftext|>) ends a text")
    language = _language(values)
    if not settings.languages and language and language.lower().strip("<|>") not in {"en", "english"}:
        notes.append(f"{where}: language {language} is not honoured: the model is English-only")
    known = {*settings.languages.values(), *settings.tasks.values(), settings.no_timestamps, None}
    unknown = [token for token in _forced(values, where) if token not in known]
    if unknown:
        notes.append(f"{where}: forced_decoder_ids: token {unknown[0]} is not honoured: no language and no task")
    return tuple(notes)


def _languages_and_tasks(
    values: Mapping[str, Any], tokenizer: Tokenizer, eot: int, where: str
) -> tuple[dict[str, int], dict[str, int]]:
    """Return tokens by language code and by task; none for an English-only model.

    Where the settings do not say it, a model is English-only whose tokenizer has no languages, or GPT-2's text tokens.
    """
    stated = values.get("lang_to_id")
    found = stated or _languages(tokenizer, special_token(tokenizer, "<|startoftranscript|>", where))
    if not values.get("is_multilingual", bool(stated) or (bool(found) and eot != GPT2_TOKENS)):
        return {}, {}
    # A model may know transcription alone.
    known = values.get("task_to_id") or [name for name in _TASKS if tokenizer.token_to_id(f"<|{name}|>") is not None]
    return (
        {name.strip("<|>"): number for name, number in found.items()},
        {name: special_token(tokenizer, f"<|{name}|>", where) for name in _TASKS if name in known},
    )


def _languages(tokenizer: Tokenizer, sot: int) -> dict[str, int]:
    """Return the tokens <|en|> and so on, which follow the start-of-transcript token."""
    texts = ((tokenizer.id_to_token(number) or "", number) for number in count(sot + 1))
    return dict(takewhile(lambda pair: _LANGUAGE.fullmatch(pair[0]), texts))


def _no_speech(tokenizer: Tokenizer, no_timestamps: int, where: str) -> int:
    # OpenAI's name for it, and that of transformers' first conversions.
    found = [tokenizer.token_to_id(text) for text in ("<|nospeech|>", "<|nocaptions|>")]
    if no_timestamps - 1 not in found:
        raise InputError(
            f"{where}: expected <|nospeech|> before <|notimestamps|> (token {no_timestamps}), found "
            f"{tokenizer.id_to_token(no_timestamps - 1)}; the tokenizer is no Whisper's"
        )
    return no_timestamps - 1


def _defaults(
    values: Mapping[str, Any], languages: Mapping[str, int], tasks: Mapping[str, int], where: str
) -> tuple[str | None, str]:
    """Return the language (None: detected) and the task that count where a user names none.

    `language` and `task` beat `forced_decoder_ids`, as in transformers.
    """
    language, task = _language(values), values.get("task")
    for key, value in (("language", language), ("task", task)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{where}: expected {key} to be a name, found {value!r}; correct it")
    if not languages:
        return None, "transcribe"
    if language is None and task is None:
        forced = _forced(values, where)
        language = next((code for code, token in languages.items() if token in forced), None)
        task = next((name for name, token in tasks.items() if token in forced), None)
    if task is not None and task not in tasks:
        raise InputError(f"{where}: expected task to be {' or '.join(tasks)}, found {task!r}; correct it")
    try:
        code = language and language_code(language.strip("<|>"), languages)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return code or None, task or "transcribe"


def _language(values: Mapping[str, Any]) -> Any:
    """Return the language; transformers takes one a recording, too."""
    language = values.get("language")
    return language[0] if isinstance(language, list) and len(language) == 1 else language


def _forced(values: Mapping[str, Any], where: str) -> list[int | None]:
    """Return the tokens of `forced_decoder_ids` behind the start-of-transcript token; None: to be detected.

    As in transformers they do not count where they begin elsewhere, and may leave no position out.
    """
    pairs = values.get("forced_decoder_ids") or []
    tokens: list[int | None] = []
    try:
        by_position = [(int(position), token if token is None else int(token)) for position, token in pairs]
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: expected forced_decoder_ids [[position, token], ...], found {pairs!r}") from error
    for position, token in by_position:
        if position != len(tokens) + 1:
            break
        tokens.append(token)
    if 0 < len(tokens) < len(by_position):
        raise InputError(f"{where}: expected forced_decoder_ids at positions 1, 2 and so on, found {pairs!r}")
    return tokens
