"""Subword tokens to text and back, from a SentencePiece model or a tokenizer.json."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from runtime.errors import DamagedArtifactError

SPACE = "\u2581"  # SentencePiece's sign for a space
# Pieces whose punctuation is not a mark of the text: [CLS], <unk>, ##ing, and pieces that begin with a space.
_NOT_TEXT = re.compile(r"\[.*\]$|<.*>$|##|\u2581|\s*$")


class _Pieces(Protocol):
    """What two libraries have in common."""

    count: int

    def piece(self, token: int) -> str: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def encode(self, text: str) -> list[int]: ...


class SubwordTokenizer:
    """The checkpoint's tokens.

    Parameters
    ----------
    file : Path
        A tokenizer.json where the name ends so, otherwise a SentencePiece model.
    n_vocab : int
        Tokens that the network knows, without the blank.

    Raises
    ------
    DamagedArtifactError
        The file is not a tokenizer, or has fewer tokens than the network.

    """

    def __init__(self, file: Path, n_vocab: int) -> None:
        kind = _HuggingFace if file.suffix == ".json" else _SentencePiece
        try:
            self._library: _Pieces = kind(file)
        except Exception as error:  # the libraries raise what they like, one of them bare Exception
            reason = str(error).partition("\n")[0]
            msg = f"{file}: expected {kind.what}, found {reason}; export the model again"
            raise DamagedArtifactError(msg) from error
        if self._library.count < n_vocab:
            raise DamagedArtifactError(
                f"{file}: expected at least {n_vocab} tokens, found {self._library.count}; export the model again"
            )
        self._n_vocab = n_vocab

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """The tokens as the vocabulary spells them; a leading U+2581 is a space."""
        return tuple(self._library.piece(token) for token in range(self._n_vocab))

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The text of each token alone: without the space before it."""
        return tuple(self._library.decode([token]) for token in range(self._n_vocab))

    @cached_property
    def punctuation(self) -> frozenset[str]:
        """Punctuation marks in the vocabulary, by NeMo's rule: not those of special tokens or behind a space."""
        kept = (piece for piece in self.pieces if not _NOT_TEXT.match(piece))
        return frozenset(char for piece in kept for char in piece if unicodedata.category(char).startswith("P"))

    @cached_property
    def unknown(self) -> int | None:
        """The token for characters that the vocabulary lacks."""
        return self.pieces.index("<unk>") if "<unk>" in self.pieces else None

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` as NeMo writes it: one space before a punctuation mark is dropped."""
        text = self._library.decode(list(tokens))
        return self._space_before_mark.sub(r"\1", text).strip() if self.punctuation else text.strip()

    def decode_word(self, tokens: Sequence[int]) -> str:
        """Return the text of one word's `tokens`."""
        return self._library.decode(list(tokens)).strip()

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of `text` at the start of a word; `unknown` for characters that the vocabulary lacks."""
        return tuple(self._library.encode(text))

    @cached_property
    def _space_before_mark(self) -> re.Pattern[str]:
        return re.compile(r"\s([" + "".join(map(re.escape, sorted(self.punctuation))) + "])")


class _SentencePiece:
    what = "a SentencePiece model"

    def __init__(self, file: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model = SentencePieceProcessor(model_proto=file.read_bytes())
        self.count: int = self._model.get_piece_size()

    def piece(self, token: int) -> str:
        piece: str = self._model.id_to_piece(token)
        return piece

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self._model.decode(list(tokens))
        return text

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = self._model.encode(text, out_type=int)
        return tokens


class _HuggingFace:
    what = "a tokenizer of the tokenizers library"

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))
        self.count: int = self._tokenizer.get_vocab_size()

    def piece(self, token: int) -> str:
        piece: str | None = self._tokenizer.id_to_token(token)
        return piece or ""

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens))
        return text

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return tokens
