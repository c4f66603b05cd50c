"""Granite's tokens to text and back, from the checkpoint's tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from runtime.errors import DamagedArtifactError, InputError

# What bytes that make no character (yet) are decoded to.
_INCOMPLETE = "\ufffd"


class GraniteTokenizer:
    """The checkpoint's tokens.

    Parameters
    ----------
    file : Path
        tokenizer.json in the format of the `tokenizers` library.
    n_vocab : int
        Tokens that the network knows.
    audio_token : int
        Stands for an audio embedding.

    Raises
    ------
    DamagedArtifactError
        The file is not a tokenizer, or has more tokens than the network.

    """

    def __init__(self, file: Path, n_vocab: int, audio_token: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            msg = f"{file}: expected a tokenizer of the tokenizers library, found {error}; export the model again"
            raise DamagedArtifactError(msg) from error
        count = self._tokenizer.get_vocab_size()
        if count > n_vocab:
            raise DamagedArtifactError(f"{file}: expected at most {n_vocab} tokens, found {count}; export again")
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token for token, its in added.items() if its.special} | {audio_token}

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Return the ids of a rendered prompt, in which special tokens are written out."""
        return tuple(self._tokenizer.encode(text).ids)

    def refuse_special(self, instruction: str) -> None:
        """Refuse an instruction in which a special token is written out: it would end the user's turn.

        Raises
        ------
        InputError
            It has one.

        """
        ids = self._tokenizer.encode(instruction, add_special_tokens=False).ids
        special = next((token for token in ids if token in self._special), None)
        if special is not None:
            found = self._tokenizer.id_to_token(special)
            raise InputError(f"--prompt: expected plain text, found the special token {found}; leave it out")

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` without special ones; bytes that make no character become U+FFFD."""
        text: str = self._tokenizer.decode([token for token in tokens if token not in self._special])
        return text

    def stream(self) -> TextStream:
        """Return a new text that grows token by token."""
        return TextStream(self)


class TextStream:
    """A text that grows token by token: a character comes out when its last byte is there.

    What comes out, in a row, is the text that all tokens decode to at once.
    """

    def __init__(self, tokenizer: GraniteTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """Return what `token` adds to the text; nothing where it ends within a character."""
        self._tokens.append(token)
        # The whole text each time: a decoder may treat its first token in another way, and it takes a millisecond.
        text = self._tokenizer.decode(self._tokens)
        return "" if text.endswith(_INCOMPLETE) else self._rest(text)

    def finish(self) -> str:
        """Return what was held back."""
        return self._rest(self._tokenizer.decode(self._tokens))

    def _rest(self, text: str) -> str:
        rest = text[self._given :]
        self._given = len(text)
        return rest
