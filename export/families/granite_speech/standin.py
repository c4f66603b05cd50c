"""Stand-ins for WEIGHTS=random: tensors of sane size, a byte-level tokenizer, the chat template of Granite 4."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain, product
from math import prod
from pathlib import Path
from string import ascii_lowercase

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from export.checkpoint import RandomCheckpoint
from export.families.granite_speech.config import ctc_characters, padded_lengths, standard_scales
from export.families.granite_speech.modules import parameter_shapes
from export.safetensors_writer import TensorInfo
from runtime.errors import InputError
from runtime.families.granite_speech.settings import GraniteDims, GraniteFrontend, GraniteScales, GraniteSettings

_BYTES = 256
_AUDIO = "<|audio|>"
# Granite 4 has 96 special tokens before the audio token, the first two of them these; small vocabularies only these.
_SPECIAL = ("<|pad|>", "<|end_of_text|>")
_N_SPECIAL, _LARGE = 96, 10_000
# What granite-4.0-1b-speech and granite-speech-4.1-2b render around a message of the user.
_PREFIX, _SUFFIX = "USER: ", "\n ASSISTANT:"
_LOGIT_STD = 2.5
# Gains over fan-in, by the first pattern found. Sharp attention and strong layers are what lets the answer depend on
# the sound and on the words before: with 1 throughout, all sounds get the same one.
_GAINS = {
    r".*\.self_attn\.[qko]_proj\.weight|.*\.crossattention\..*\.weight": 3.0,
    r".*\.attn\.to_(q|kv)\.weight|.*\.attention\.attention\.(query|key)\.weight": 1.5,
}


class RandomGranite:
    """A Granite Speech of the given dims with random weights; the same dims give the same bytes.

    Scaled by fan-in: activations stay near unit size, logits have a standard deviation of about 2.5, and what is said
    depends on the sound. The BatchNorm of a trained model is part of the convolution here.
    """

    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, dims: GraniteDims) -> None:
        self.dims = dims
        self.frontend = GraniteFrontend(n_mels=dims.n_mels)
        scales = standard_scales(dims)
        tokenizer = standin_tokenizer(dims.n_vocab)
        self.settings = GraniteSettings(
            audio_token=tokenizer.token_to_id(_AUDIO),
            audio_text=_AUDIO,
            eos=(tokenizer.token_to_id("<|end_of_text|>"),),
            prompt_prefix=_PREFIX,
            prompt_suffix=_SUFFIX,
            scales=scales,
            ctc_characters=ctc_characters(dims.n_ctc),
            **padded_lengths(dims.n_ctx),
        )
        self.tokenizer_json = tokenizer.to_str().encode()
        self._checkpoint = RandomCheckpoint(
            parameter_shapes(dims), lambda name, shape: mean_and_std(name, shape, dims, scales)
        )
        self.tensors: Mapping[str, TensorInfo] = self._checkpoint.tensors

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor, of numbers of bfloat16 as those of the hub's checkpoints are."""
        return self._checkpoint.read(name).to(torch.bfloat16).float()


def mean_and_std(name: str, shape: tuple[int, ...], dims: GraniteDims, scales: GraniteScales) -> tuple[float, float]:
    """Return mean and standard deviation of a parameter."""
    module, _, kind = name.rpartition(".")
    # In the language model's stream an embedding has unit size. A tied head would prefer the token that was just read:
    # there the layers have to add more than the embedding, and the last norm makes up for it.
    embedding = (0.1 if dims.tied else 1.0) / scales.embedding_multiplier
    logit = _LOGIT_STD * scales.logits_scaling
    if "norm" in module.rpartition(".")[2].lower():
        last = dims.tied and module == "language_model.model.norm"
        size = logit / (embedding * dims.lm_dim**0.5) if last else 1.0
        return (size, 0.1 * size) if kind == "weight" else (0.0, 0.1)
    if kind == "bias":
        return 0.0, 0.1
    fan_in = prod(shape[1:]) ** -0.5
    by_name = {
        r"projector\.query|.*\.rel_pos_emb\.weight": 1.0,
        r".*\.embed_tokens\.weight": embedding,
        r".*\.lm_head\.weight": logit * fan_in,
        r"projector\.linear\.weight": embedding * fan_in,
        # More costs precision in bfloat16.
        r".*\.mlp\..*\.weight": (2.0 if dims.tied else 1.5) * fan_in,
        **{pattern: gain * fan_in for pattern, gain in _GAINS.items()},
    }
    return 0.0, next((std for pattern, std in by_name.items() if re.fullmatch(pattern, name)), fan_in)


def standin_tokenizer(n_vocab: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer without merges whose special tokens lie where Granite 4's vocabulary has them.

    Text ids: the 256 bytes, then made-up words, which only decoding yields. Then the special tokens, `<|audio|>` last.
    """
    n_special = _N_SPECIAL if n_vocab > _LARGE else len(_SPECIAL)
    n_text = n_vocab - n_special - 1
    if n_text < _BYTES:
        raise InputError(
            f"a vocabulary of {n_vocab} leaves no room for {_BYTES} bytes beside {n_special + 1} special tokens"
        )
    letters = chain.from_iterable(product(ascii_lowercase, repeat=length) for length in range(1, 5))
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += ["\u0120" + "".join(next(letters)) for _ in range(n_text - _BYTES)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    unused = (f"<|unused_{number}|>" for number in range(n_special - len(_SPECIAL)))
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in (*_SPECIAL, *unused, _AUDIO)]
    )
    return tokenizer
