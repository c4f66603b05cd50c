"""Stand-ins for WEIGHTS=random: tensors of sane size, a tokenizer in OpenAI's layout, and its generation settings."""

from __future__ import annotations

from itertools import chain, product
from math import prod
from pathlib import Path
from string import ascii_lowercase

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from export.checkpoint import RandomCheckpoint
from export.families.whisper.alignment import last_half
from export.families.whisper.checkpoint import parameter_shapes
from runtime.errors import InputError
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend, WhisperSettings

# Languages in the order of their tokens in OpenAI's vocabularies; large-v3 added the last.
_LANGUAGES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi "
    "ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd "
    "gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue"
)
_ENGLISH_ONLY, _LARGE_V3 = 51864, 51866
_BYTES = 256
# Tokens between the languages and the timestamps.
_TASK_TOKENS = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
# Single characters that openai/whisper suppresses as no speech.
_SYMBOLS = '"#()*+/:;<=>@[\\]^_`{|}~'


class RandomWhisper:
    """A Whisper of the given dims with random weights; the same dims give the same bytes."""

    files: tuple[Path, ...] = ()
    tokenizer_folder: Path | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, dims: WhisperDims) -> None:
        self.dims = dims
        self.frontend = WhisperFrontend(n_mels=dims.n_mels, n_samples=dims.n_frames * 160)
        tokenizer = standin_tokenizer(dims)
        self.settings = standin_settings(dims, tokenizer)
        self.tokenizer_json = tokenizer.to_str().encode()
        self.alignment_heads = last_half(dims)
        self._checkpoint = RandomCheckpoint(parameter_shapes(dims), _mean_and_std)
        self.tensors = self._checkpoint.tensors

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""
        return self._checkpoint.read(name)


def _mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Scale by fan-in: activations stay near unit size, and logits have a standard deviation of about 2."""
    module, _, kind = name.rpartition(".")
    if module.endswith("layer_norm"):
        return (1.0, 0.1) if kind == "weight" else (0.0, 0.1)
    if kind == "bias":
        return 0.0, 0.1
    if module.endswith("embed_positions"):
        return 0.0, 0.5
    if module.endswith("embed_tokens"):
        return 0.0, 2 * shape[1] ** -0.5
    return 0.0, prod(shape[1:]) ** -0.5


def standin_tokenizer(dims: WhisperDims) -> Tokenizer:
    """Return a byte-level BPE tokenizer without merges whose special tokens lie where OpenAI's vocabularies have them.

    Text ids: the 256 bytes in GPT-2's order, then made-up words. Then the end token, <|startoftranscript|>, the
    languages, six more special tokens, and a timestamp for each encoder frame and one for the window's end.
    """
    languages = _languages(dims.n_vocab)
    n_timestamps = dims.n_audio_ctx + 1
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{name}|>" for name in (*languages, *_TASK_TOKENS))]
    n_text = dims.n_vocab - n_timestamps - len(special)
    if n_text < _BYTES:
        raise InputError(f"a vocabulary of {dims.n_vocab} leaves no room for bytes beside {n_timestamps} timestamps")
    letters = chain.from_iterable(product(ascii_lowercase, repeat=length) for length in range(1, 5))
    pieces = [*_byte_pieces(), *("\u0120" + "".join(next(letters)) for _ in range(n_text - _BYTES))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    stamps = (f"<|{index * 0.02:.2f}|>" for index in range(n_timestamps))
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in stamps])
    return tokenizer


def standin_settings(dims: WhisperDims, tokenizer: Tokenizer) -> WhisperSettings:
    """Return generation settings with the ids that OpenAI's layout gives."""
    ids = tokenizer.get_vocab()

    def token(name: str) -> int:
        return ids[f"<|{name}|>"]

    multilingual = dims.n_vocab != _ENGLISH_ONLY
    pieces = _byte_pieces()
    symbols = sorted(pieces.index(symbol) for symbol in _SYMBOLS)
    never = [token(name) for name in ("startoftranscript", *_TASK_TOKENS) if name != "notimestamps"]
    return WhisperSettings(
        sot=token("startoftranscript"),
        eot=token("endoftext"),
        sot_prev=token("startofprev"),
        no_speech=token("nospeech"),
        no_timestamps=token("notimestamps"),
        timestamp_begin=token("notimestamps") + 1,
        n_timestamps=dims.n_audio_ctx + 1,
        languages={name: token(name) for name in _languages(dims.n_vocab)} if multilingual else {},
        tasks={name: token(name) for name in ("transcribe", "translate")} if multilingual else {},
        suppress_tokens=(*symbols, *sorted(never)),
        begin_suppress_tokens=(pieces.index("\u0120"), token("endoftext")),
        max_initial_timestamp_index=50,
        max_length=dims.n_text_ctx,
    )


def _languages(n_vocab: int) -> list[str]:
    """Return the languages with a token in a vocabulary of this size; small ones have three."""
    if n_vocab < _ENGLISH_ONLY:
        return ["en", "de", "es"]
    languages = _LANGUAGES.split()
    return languages if n_vocab >= _LARGE_V3 else languages[:-1]


def _byte_pieces() -> list[str]:
    """Return GPT-2's characters for the bytes, in the order of their ids: printable ones as they are, first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + index) for index in range(_BYTES - len(printable))]
