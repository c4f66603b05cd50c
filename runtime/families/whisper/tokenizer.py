"""Whisper's tokens to text and back, from the checkpoint's tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from runtime.errors import DamagedArtifactError, InputError


class WhisperTokenizer:
    """Special tokens and times are no text; tokens that a fine-tune added behind them are, unless marked as special.

    Parameters
    ----------
    file : Path
        tokenizer.json in the format of the `tokenizers` library.
    special : range
        Ids from the end token up to the last timestamp, whether the tokenizer lists and marks them or not.

    Raises
    ------
    DamagedArtifactError
        The file is not a tokenizer.

    """

    def __init__(self, file: Path, special: range) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            msg = f"{file}: expected a tokenizer of the tokenizers library, found {error}; export the model again"
            raise DamagedArtifactError(msg) from error
        self._special = special
        added = self._tokenizer.get_added_tokens_decoder()
        self._marked = {number for number, token in added.items() if token.special}

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens` without special tokens and timestamps.

        A character whose bytes are spread over several tokens comes out whole; bytes that make no character become
        U+FFFD.
        """
        text: str = self._tokenizer.decode([token for token in tokens if self.is_text(token)])
        return text

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Return the ids of `text` as earlier speech: after one space, as openai/whisper and transformers put it.

        Raises
        ------
        InputError
            The text contains a special token such as <|endoftext|>.

        """
        ids: list[int] = self._tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids
        special = next((token for token in ids if not self.is_text(token)), None)
        if special is not None:
            found = self._tokenizer.id_to_token(special)
            raise InputError(f"--prompt: expected plain text, found the special token {found}; leave it out")
        return tuple(ids)

    def is_text(self, token: int) -> bool:
        """Tell whether a token stands for text."""
        return token not in self._special and token not in self._marked
