"""What the manifest of a FastConformer artifact says of encoder and front-end, whatever the decoder."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

# The graphs' names.
FRONTEND, ENCODER = "frontend", "encoder"


class Frozen(BaseModel):
    """Base: what it does not know it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FastConformerDims(Frozen):
    """The encoder (Rekesh et al. 2023, arXiv:2305.05084) and the size of the vocabulary.

    `use_bias` (0 or 1) says whether the encoder's linear and pointwise layers have biases, `xscaling` (0 or 1) whether
    the encoder's input is multiplied by the square root of `d_model`. `n_vocab` counts the pieces without the blank,
    whose id it is.
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
    n_vocab: int

    @property
    def blank(self) -> int:
        """The id of the blank."""
        return self.n_vocab


class FastConformerFrontend(Frozen):
    """The log-mel front-end: rate in Hz, lengths in samples. Window and mel filters are constants of its graph."""

    sample_rate: int = Field(default=16000, gt=0)
    n_fft: int = Field(default=512, gt=0)
    win_length: int = Field(default=400, gt=0)
    hop_length: int = Field(default=160, gt=0)
    n_mels: int = Field(default=128, gt=0)
    preemphasis: float = 0.97


class FastConformerSettings(Frozen):
    """`tokenizer_file` is a SentencePiece model, or a tokenizer.json.

    A recording of more than `full_attention_s` seconds goes through the encoder in windows.
    """

    tokenizer_file: str = "tokenizer.model"
    full_attention_s: float = Field(default=120.0, gt=0)


def recording_case(name: str) -> str:
    """Return the name of the encoder case that holds the whole of the recording `name`."""
    return f"{name}_recording"


def encoder_bytes(dims: FastConformerDims, n_frames: int, item_bytes: int = 4) -> int:
    """Return about how much memory the encoder takes for one recording of `n_frames`, beside its weights.

    The largest of it: five copies of the attention's scores [heads, T, T] (by distance, with twice the columns, by
    content, their sums), and as many of the first convolution's output [channels, n_mels / 2, 4 T]. ONNX Runtime 1.31
    took .84 to 1.01 of that on the CPU for parakeet-pocket at T = 3000 and 5000, TorchScript .61.

    Parameters
    ----------
    dims : FastConformerDims
        The network.
    n_frames : int
        T, encoder frames.
    item_bytes : int
        Bytes of a number in the artifact's precision.

    """
    scores = dims.n_heads * n_frames**2
    convolution = dims.subsampling_channels * (dims.n_mels // 2) * (dims.subsampling_factor // 2) * n_frames
    return 5 * item_bytes * (scores + convolution)
