"""Random weights of a FastConformer's encoder, and a vocabulary of made-up words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain, product
from math import prod
from statistics import NormalDist
from string import ascii_lowercase

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# What speech has, about.
TOKENS_PER_SECOND = 3.5
# The blank's logit varies this much more than a token's: the share of blanks then depends little on the tokens.
BLANK_GAIN = 3.0
_SPACE = "\u2581"
_MARKS = ".,?"
_NORM = re.compile(r".*\.norm_\w+")
# Over fan-in. Attention averages frames: with more of it, 24 layers make all frames equal.
_ATTENTION_GAIN = 0.3


def blank_bias(n_vocab: int, share: float, std: float) -> float:
    """Return the bias of the blank's logit that lets a share of the choices be another token.

    Token logits are independent and normal, with the standard deviation `std`, as the weights' rows are, and their
    largest has the median q of V normal values; the blank's is normal, too, with BLANK_GAIN times their deviation.
    """
    normal = NormalDist()
    largest = normal.inv_cdf(0.5 ** (1 / n_vocab))
    return std * (largest - BLANK_GAIN * normal.inv_cdf(min(share, 0.9)))


def centred(tensor: torch.Tensor) -> torch.Tensor:
    """Return a weight whose rows sum to zero, a vector as it is.

    What does not change from frame to frame then hardly counts. In float64, so that the order of the sum, which
    depends on the CPU, does not show.
    """
    if tensor.dim() > 1:
        tensor -= tensor.mean(dim=tuple(range(1, tensor.dim())), keepdim=True, dtype=torch.float64).float()
    return tensor


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
