"""Whisper's tokens to text and back, from the checkpoint's tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from runtime.errors import DamagedArtifactError, InputError


class WhisperTokenizer:
    """Text ids lie below the end token; the end token, the other special tokens and the timestamps lie from it on.

    Parameters
    ----------
    file : Path
        tokenizer.json in the format of the `tokenizers` library.
    eot : int
        The end token.

    Raises
    ------
    DamagedArtifactError
        The file is not a tokenizer.

    """

    def __init__(self, file: Path, eot: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            msg = f"{file}: expected a tokenizer of the tokenizers library, found {error}; export the model again"
            raise DamagedArtifactError(msg) from error
        self._eot = eot

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens` without special tokens and timestamps.

        A character whose bytes are spread over several tokens comes out whole; bytes that make no character become
        U+FFFD.
        """
        text: str = self._tokenizer.decode([token for token in tokens if token < self._eot])
        return text

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Return the ids of `text` as earlier speech: after one space, as openai/whisper and transformers put it.

        Raises
        ------
        InputError
            The text contains a special token such as <|endoftext|>.

        """
        ids: list[int] = self._tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids
        special = next((token for token in ids if token >= self._eot), None)
        if special is not None:
            found = self._tokenizer.id_to_token(special)
            raise InputError(f"initial prompt: expected plain text, found the special token {found}; leave it out")
        return tuple(ids)
