"""Random weights of a FastConformer's encoder, and a vocabulary of made-up words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain, product
from math import prod
from string import ascii_lowercase

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_SPACE = "\u2581"
_MARKS = ".,?"
_NORM = re.compile(r".*\.norm_\w+")
# Over fan-in. Attention averages frames: with more of it, 24 layers make all frames equal.
_ATTENTION_GAIN = 0.3


def standin_tokenizer(n_vocab: int) -> Tokenizer:
    """Return a tokenizer whose pieces are <unk>, punctuation and made-up words, with and without a space before.

    The space is SentencePiece's sign for it, as in a trained model.
    """
    letters = chain.from_iterable(product(ascii_lowercase, repeat=length) for length in range(1, 6))
    words = map("".join, letters)
    pieces = ["<unk>", *_MARKS]
    while len(pieces) < n_vocab:
        word = next(words)
        pieces += [_SPACE + word, word][: n_vocab - len(pieces)]
    vocabulary = {piece: number for number, piece in enumerate(pieces[:n_vocab])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=pieces[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def mean_and_std(name: str, shape: tuple[int, ...], gains: Mapping[str, float]) -> tuple[float, float]:
    """Scale by fan-in: activations stay near unit size. `gains` are those of the decoder's modules."""
    module, _, kind = name.rpartition(".")
    if _NORM.fullmatch(module):
        return (1.0, 0.1) if kind == "weight" else (0.0, 0.1)
    if len(shape) == 1:
        return 0.0, 0.1
    if kind.startswith("pos_bias"):
        return 0.0, 0.3
    return 0.0, gains.get(module, _gain(module)) * prod(shape[1:]) ** -0.5


def _gain(module: str) -> float:
    """Return what makes up for an activation before a layer."""
    if module.endswith("linear_out"):
        return _ATTENTION_GAIN
    return 1.7 if module.endswith(("linear2", "pointwise_conv2")) or ".pre_encode." in module else 1.0
