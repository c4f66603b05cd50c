"""What a Whisper artifact's manifest says of the network, its front-end and its special tokens."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WhisperDims(_Frozen):
    """The whole description of the network, named as in openai/whisper's ModelDimensions.

    `n_audio_ctx` is the number of encoder frames (1500), `n_text_ctx` the number of decoder positions (448).
    """

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_audio_ffn: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int
    n_text_ffn: int

    @property
    def n_frames(self) -> int:
        """Mel frames in one window: the encoder's second convolution halves them."""
        return 2 * self.n_audio_ctx

    @property
    def head_dim(self) -> int:
        """Size of one decoder head."""
        return self.n_text_state // self.n_text_head

    @property
    def prefill_lengths(self) -> tuple[int, ...]:
        """Prompt lengths that have a graph, rising.

        The longest prompt is a start-of-previous token, n_text_ctx // 2 - 1 tokens of earlier text and four tokens
        that set language, task and timestamps.
        """
        longest = self.n_text_ctx // 2 + 4
        return (*(n for n in (4, 32, 128) if n < longest), longest)


class WhisperFrontend(_Frozen):
    """The log-mel front-end: rates in Hz, lengths in samples."""

    sample_rate: int = 16000
    n_fft: int = 400
    hop_length: int = 160
    n_mels: int
    n_samples: int = Field(description="samples in one window")


# The graph that only word times need.
ALIGN = "align"
# Times from 0.00 to 30.00 s.
TIMESTAMPS = 1501


class WhisperSettings(_Frozen):
    """Special tokens, decoding rules and defaults of the checkpoint (its generation_config.json).

    `languages` maps a code ("en") to its token; empty in an English-only model, as is `tasks`. `tasks` may hold
    "transcribe" alone. `language` and `task` count where the options name none; without a `language` it is detected.
    The time of a token t of `timestamps` is (t - timestamp_begin) * 0.02 s; ids behind them are text that a fine-tune
    added. `max_new_tokens`, where it is set, counts in place of `max_length`, which a prompt extends.
    """

    sot: int
    eot: int
    sot_prev: int
    no_speech: int
    no_timestamps: int
    timestamp_begin: int
    n_timestamps: int = TIMESTAMPS
    languages: dict[str, int]
    tasks: dict[str, int]
    suppress_tokens: tuple[int, ...]
    begin_suppress_tokens: tuple[int, ...]
    max_initial_timestamp_index: Annotated[int, Field(ge=0)] | None
    max_length: int = Field(ge=1)
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    language: str | None = None
    task: str = "transcribe"
    tokenizer_file: str = "tokenizer.json"

    @property
    def timestamps(self) -> range:
        """Ids of the tokens that are times."""
        return range(self.timestamp_begin, self.timestamp_begin + self.n_timestamps)

    @property
    def special(self) -> range:
        """Ids of the tokens that are no text: from the end token up to the last time."""
        return range(self.eot, self.timestamps.stop)
