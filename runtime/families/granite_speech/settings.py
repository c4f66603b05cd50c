"""What a Granite Speech artifact's manifest says of the network, its front-end and its prompts."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

# The graphs' names.
ENCODE_PROJECT, EMBED, PREFILL, DECODE = "encode_project", "embed", "prefill", "decode"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GraniteDims(_Frozen):
    """The sizes of the network: conformer encoder (`enc_`), Q-Former projector (`proj_`), language model (`lm_`).

    `enc_context` is the length in frames of the blocks that attention stays within, `enc_max_pos` the largest distance
    that has an embedding. The projector turns every `window` frames into window // downsample embeddings. `n_vocab`
    counts the rows of the embedding, `n_ctx` the positions of the language model; `tied` (0 or 1) says whether its head
    is the embedding.
    """

    n_mels: int
    enc_layers: int
    enc_dim: int
    enc_heads: int
    enc_head_dim: int
    enc_ffn: int
    enc_conv_dim: int
    enc_conv_kernel: int
    enc_context: int
    enc_max_pos: int
    n_ctc: int
    proj_layers: int
    proj_dim: int
    proj_heads: int
    proj_ffn: int
    window: int
    downsample: int
    lm_layers: int
    lm_dim: int
    lm_heads: int
    lm_kv_heads: int
    lm_ffn: int
    n_vocab: int
    n_ctx: int
    tied: int

    @property
    def unit(self) -> int:
        """Frames in the smallest whole number of attention blocks and projector windows."""
        return math.lcm(self.enc_context, self.window)

    @property
    def queries(self) -> int:
        """Embeddings for each projector window."""
        return self.window // self.downsample

    @property
    def head_dim(self) -> int:
        """Size of one head of the language model."""
        return self.lm_dim // self.lm_heads

    def n_embeds(self, n_frames: int) -> int:
        """Return how many embeddings a recording of `n_frames` encoder frames gives; the last window may be partial."""
        return -(-n_frames // self.window) * self.queries


class GraniteFrontend(_Frozen):
    """The log-mel front-end: rate in Hz, lengths in samples. Two mel frames make one of the encoder's."""

    sample_rate: int = Field(default=16000, gt=0)
    n_fft: int = Field(default=512, gt=0)
    win_length: int = Field(default=400, gt=0)
    hop_length: int = Field(default=160, gt=0)
    n_mels: int = Field(default=80, gt=0)

    @property
    def frame_s(self) -> float:
        """Seconds of one of the encoder's frames."""
        return 2 * self.hop_length / self.sample_rate


class GraniteScales(_Frozen):
    """The network's constants: Granite's multipliers, its RoPE base, and what norms add to the variance."""

    embedding_multiplier: float = 12.0
    attention_multiplier: float = 0.0078125
    residual_multiplier: float = 0.22
    logits_scaling: float = 8.0
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    projector_norm_eps: float = 1e-12


class GraniteSettings(_Frozen):
    """Special tokens, the chat template's text around a prompt, and the lengths that inputs are padded to.

    A prompt is `prompt_prefix`, `audio_text` once for each audio embedding, the instruction, `prompt_suffix`: the
    checkpoint's own chat template, rendered at export for one message of the user. `prefill_lengths` and
    `cache_lengths` rise; a prompt is padded to the least of the former that holds it, the cache to the least of the
    latter that holds prompt and answer. `ctc_characters` are the encoder's own output characters by id, id 0 being the
    blank; empty where they are not known.
    """

    audio_token: int
    audio_text: str = "<|audio|>"
    eos: tuple[int, ...]
    prompt_prefix: str
    prompt_suffix: str
    scales: GraniteScales = GraniteScales()
    prefill_lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    cache_lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    ctc_characters: str = ""
    tokenizer_file: str = "tokenizer.json"


def bucket(length: int, lengths: tuple[int, ...]) -> int:
    """Return the least of rising `lengths` that holds `length`.

    Raises
    ------
    ValueError
        None does: the caller did not keep to the model's context.

    """
    for candidate in lengths:
        if candidate >= length:
            return candidate
    msg = f"length {length}: expected at most {lengths[-1]}"
    raise ValueError(msg)


def bucket_units(units: int) -> int:
    """Return at least `units`, of few values and at most half as many again: 1 to 4, 6, 8, 12, 16, 24 and so on."""
    step = 1 << max(0, (units - 1).bit_length() - 2)
    return -(-units // step) * step
