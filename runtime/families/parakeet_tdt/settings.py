"""What a Parakeet-TDT artifact's manifest says of the network and its decoding."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from runtime.fastconformer.settings import FastConformerDims, FastConformerSettings

# The graphs' names beside those of the encoder. `decode_N` makes N steps of the greedy search at once.
STEP, JOIN = "step", "join"


class ParakeetDims(FastConformerDims):
    """The whole description of the network: a FastConformer encoder, an LSTM prediction net and a joint net.

    The blank is also what the prediction net starts from; the logits are those of n_vocab + 1 tokens, then of
    `n_durations` durations.
    """

    pred_hidden: int
    pred_layers: int
    joint_hidden: int
    n_durations: int


class ParakeetSettings(FastConformerSettings):
    """Decoding: the durations in encoder frames by logit, and how many symbols one frame may emit.

    `decode_steps` are the N of the graphs decode_N.
    """

    durations: tuple[Annotated[int, Field(ge=0)], ...]
    max_symbols: int = Field(default=10, gt=0)
    decode_steps: tuple[int, ...] = (8, 32)


def decode_graph(n_steps: int) -> str:
    """Return the name of the graph that makes `n_steps` steps of the greedy search."""
    return f"decode_{n_steps}"
