"""A Whisper checkpoint's tokenizer: read as transformers reads it, and checked against the network."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from export.json_files import read_json
from runtime.errors import InputError
from runtime.families.whisper.settings import TIMESTAMPS, WhisperDims, WhisperSettings

TOKENIZER_JSON = "tokenizer.json"
# What transformers 4 wrote in place of tokenizer.json.
_VOCABULARY = ("vocab.json", "merges.txt")
# Whatever else of a folder has a say in the ids, and in which tokens are special.
_SIDE_FILES = ("added_tokens.json", "normalizer.json", "special_tokens_map.json", "tokenizer_config.json")
_ANOTHER = "the tokenizer is another model's; give the right one by --tokenizer FOLDER or hub id"
# Text tokens of GPT-2, which openai/whisper's English-only models have; the multilingual ones have one more.
GPT2_TOKENS = 50256
_V3_MELS = 128
# A padded vocabulary is a multiple of 8 or more. By one or two ids Whisper's tokenizers differ from each other.
_OFF_BY = 2
_STATED = {
    "eos_token_id": "<|endoftext|>",
    "decoder_start_token_id": "<|startoftranscript|>",
    "prev_sot_token_id": "<|startofprev|>",
    "no_timestamps_token_id": "<|notimestamps|>",
}


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that make up the tokenizer of a folder, none where it has none."""
    main = (TOKENIZER_JSON,) if (folder / TOKENIZER_JSON).is_file() else _VOCABULARY
    if not all((folder / name).is_file() for name in main):
        return ()
    return tuple(folder / name for name in (*main, *_SIDE_FILES) if (folder / name).is_file())


def read_tokenizer(folder: Path, base: str = "openai/whisper-tiny") -> Tokenizer:
    """Return the tokenizer that transformers makes of a folder: the same ids and texts, without padding or truncation.

    Parameters
    ----------
    folder : Path
        With tokenizer.json, or vocab.json and merges.txt, and what else transformers writes beside them.
    base : str
        A model that has the tokenizer, named where the folder has none.

    Raises
    ------
    InputError
        There is no tokenizer, it is damaged, or its files do not belong together.

    """
    files = tokenizer_files(folder)
    if not files:
        raise InputError(
            f"{folder}: expected {TOKENIZER_JSON}, or {' and '.join(_VOCABULARY)}, found no tokenizer; give one by "
            f"--tokenizer FOLDER or hub id, such as --tokenizer {base}"
        )
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        stated = _stated_ids(files)
        tokenizer: Tokenizer = transformers.WhisperTokenizer.from_pretrained(
            folder, local_files_only=True
        ).backend_tokenizer
        # transformers sets both anew for each call.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        found = Tokenizer.from_str(tokenizer.to_str()).get_vocab(with_added_tokens=True)
    except InputError:
        raise
    except Exception as error:  # the libraries raise whatever a file makes them stumble over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{files[0]}: expected a tokenizer of transformers ({reason}); get it again") from error
    for token, number in stated.items():
        if found.get(token) != number:
            raise InputError(
                f"{folder}: token {token!r} is number {number} in the files, {found.get(token)} as transformers reads "
                "them; the tokenizer's files are of different models, get them again"
            )
    return tokenizer


def _stated_ids(files: tuple[Path, ...]) -> dict[str, int]:
    """Return the ids that the files state themselves."""
    if files[0].name == TOKENIZER_JSON:
        ids: dict[str, int] = Tokenizer.from_file(str(files[0])).get_vocab(with_added_tokens=True)
        return ids
    added = [read_json(file) for file in files if file.name == "added_tokens.json"]
    return read_json(files[0]) | (added[0] if added else {})


def base_model(config: Mapping[str, Any]) -> str:
    """Return a hub id whose tokenizer suits the network of a config.json: the model that it was trained from.

    Where that is not stated, OpenAI's: one for English, one up to large-v2, one from large-v3 on.
    """
    name = config.get("_name_or_path")
    if isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    if config.get("eos_token_id") == GPT2_TOKENS:
        return "openai/whisper-tiny.en"
    return "openai/whisper-large-v3" if config.get("num_mel_bins") == _V3_MELS else "openai/whisper-tiny"


def special_token(tokenizer: Tokenizer, text: str, where: str) -> int:
    """Return the id of a special token.

    Raises
    ------
    InputError
        The tokenizer has none.

    """
    found: int | None = tokenizer.token_to_id(text)
    if found is None:
        raise InputError(f"{where}: expected a tokenizer with {text}, found none in it; {_ANOTHER}")
    return found


def check_stated_ids(values: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> None:
    """Compare the special tokens that a config.json or generation_config.json states with the tokenizer's.

    Raises
    ------
    InputError
        One of them differs.

    """
    stated: dict[str, Any] = {text: values[key] for key, text in _STATED.items() if values.get(key) is not None}
    for key, form in (("lang_to_id", "{}"), ("task_to_id", "<|{}|>")):
        numbers = values.get(key) or {}
        if not isinstance(numbers, dict):
            raise InputError(f"{where}: expected {key} to be an object, found {type(numbers).__name__}; get it again")
        stated |= {form.format(name): number for name, number in numbers.items()}
    for text, number in stated.items():
        found = tokenizer.token_to_id(text)
        # An end token may be one of several.
        if found is None or found not in (number if isinstance(number, list) else [number]):
            raise InputError(f"{where}: token {text} is number {number!r} there, {found} in the tokenizer; {_ANOTHER}")


def count_timestamps(tokenizer: Tokenizer, begin: int, dims: WhisperDims, where: str) -> int:
    """Return how many tokens from `begin` on are times.

    The tokenizers that transformers 4 and CTranslate2 wrote do not list them: the ids from `begin` on are times all the
    same, as many as OpenAI's models have.

    Raises
    ------
    InputError
        Not one for each encoder frame of the window and one for its end.

    """
    if tokenizer.id_to_token(begin) is None:
        limit = min(max(TIMESTAMPS, dims.n_audio_ctx + 1), dims.n_vocab - begin)
        found = next((n for n in range(limit) if tokenizer.id_to_token(begin + n) is not None), limit)
    else:
        found = next(n for n in count() if tokenizer.id_to_token(begin + n) != f"<|{n * 0.02:.2f}|>")
    if found <= dims.n_audio_ctx:
        raise InputError(
            f"{where}: expected {dims.n_audio_ctx + 1} timestamps behind <|notimestamps|>, found {found}; {_ANOTHER}"
        )
    return found


def check_vocabulary(tokenizer: Tokenizer, settings: WhisperSettings, dims: WhisperDims, where: str) -> None:
    """Compare a tokenizer's size with the network's.

    It names every id up to the timestamps, and none that the network has not. Of ids behind the timestamps the network
    may have more, as padding.

    Raises
    ------
    InputError
        It is too small or too large.

    """
    numbers = set(tokenizer.get_vocab(with_added_tokens=True).values())
    largest = max(numbers)
    if largest >= dims.n_vocab:
        raise InputError(
            f"{where}: expected token ids below the network's vocab_size {dims.n_vocab}, found {largest}; {_ANOTHER}"
        )
    missing = next((number for number in range(settings.timestamp_begin) if number not in numbers), None)
    if missing is not None:
        raise InputError(
            f"{where}: expected a tokenizer with all ids up to the timestamps, found none for {missing}; {_ANOTHER}"
        )
    end = max(largest + 1, settings.timestamps.stop)
    if 0 < dims.n_vocab - end <= _OFF_BY:
        raise InputError(
            f"{where}: expected a tokenizer for the network's vocab_size {dims.n_vocab}, found one for {end}; "
            f"{_ANOTHER}"
        )
