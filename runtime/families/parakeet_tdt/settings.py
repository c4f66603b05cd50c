"""What a Parakeet-TDT artifact's manifest says of the network, its front-end and its decoding."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# The graphs' names. `decode_N` makes N steps of the greedy search at once, see decode_graph.
FRONTEND, ENCODER, STEP, JOIN = "frontend", "encoder", "step", "join"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ParakeetDims(_Frozen):
    """The whole description of the network: a FastConformer encoder, an LSTM prediction net and a joint net.

    `use_bias` (0 or 1) says whether the encoder's linear and pointwise layers have biases, `xscaling` (0 or 1) whether
    the encoder's input is multiplied by the square root of `d_model`. `n_vocab` counts the pieces without the blank,
    whose id it is; the logits are those of n_vocab + 1 tokens, then of `n_durations` durations.
    """

    n_mels: int
    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    conv_kernel: int
    subsampling_factor: int
    subsampling_channels: int
    use_bias: int
    xscaling: int
    pred_hidden: int
    pred_layers: int
    joint_hidden: int
    n_vocab: int
    n_durations: int

    @property
    def blank(self) -> int:
        """The id of the blank token, which is also what the prediction net starts from."""
        return self.n_vocab


class ParakeetFrontend(_Frozen):
    """The log-mel front-end: rate in Hz, lengths in samples. Window and mel filters are constants of its graph."""

    sample_rate: int = Field(default=16000, gt=0)
    n_fft: int = Field(default=512, gt=0)
    win_length: int = Field(default=400, gt=0)
    hop_length: int = Field(default=160, gt=0)
    n_mels: int = Field(default=128, gt=0)
    preemphasis: float = 0.97


class ParakeetSettings(_Frozen):
    """Decoding: the durations in encoder frames by logit, and how many symbols one frame may emit.

    `decode_steps` are the N of the graphs decode_N. `tokenizer_file` is a SentencePiece model, or a tokenizer.json. A
    recording of more than `full_attention_s` seconds goes through the encoder in windows.
    """

    durations: tuple[Annotated[int, Field(ge=0)], ...]
    max_symbols: int = Field(default=10, gt=0)
    decode_steps: tuple[int, ...] = (8, 32)
    tokenizer_file: str = "tokenizer.model"
    full_attention_s: float = Field(default=120.0, gt=0)


def decode_graph(n_steps: int) -> str:
    """Return the name of the graph that makes `n_steps` steps of the greedy search."""
    return f"decode_{n_steps}"


def encoder_bytes(dims: ParakeetDims, n_frames: int, item_bytes: int = 4) -> int:
    """Return about how much memory the encoder takes for one recording of `n_frames`, beside its weights.

    The largest of it: five copies of the attention's scores [heads, T, T] (by distance, with twice the columns, by
    content, their sums), and as many of the first convolution's output [channels, n_mels / 2, 4 T]. ONNX Runtime 1.31
    took .84 to 1.01 of that on the CPU for parakeet-pocket at T = 3000 and 5000, TorchScript .61.

    Parameters
    ----------
    dims : ParakeetDims
        The network.
    n_frames : int
        T, encoder frames.
    item_bytes : int
        Bytes of a number in the artifact's precision.

    """
    scores = dims.n_heads * n_frames**2
    convolution = dims.subsampling_channels * (dims.n_mels // 2) * (dims.subsampling_factor // 2) * n_frames
    return 5 * item_bytes * (scores + convolution)
