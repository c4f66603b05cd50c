"""How to transcribe: the options that do not depend on the decoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from runtime.fastconformer.confidence import Aggregation, Method
from runtime.options import Flag
from runtime.vad.options import SpeechOptions

Seconds = Annotated[float, Field(allow_inf_nan=False)]


class FastConformerOptions(SpeechOptions):
    """Options of one transcription.

    Attributes
    ----------
    confidence : {"max_prob", "entropy"}
        What a token's confidence is computed from; see `confidence`.
    aggregation : {"mean", "min", "prod"}
        How the tokens' confidences make that of a word or a segment.
    segment_gap_s : float or None
        Begin a new segment also at a pause between two words of at least so many seconds; None: only after a word
        that ends in `.`, `?` or `!`, or in Japanese and Chinese in their marks, and there at pauses of 0.6 s.
    attention : {"auto", "full", "windows"}
        Encode a recording whole, or in windows that overlap; auto: in windows where it is longer than
        `full_attention_s`, and full refuses such a one. Memory grows with the square of what is encoded at once.
    full_attention_s : float or None
        Limit in seconds; None: the artifact's.
    chunk_s, left_s, right_s : float
        Window: what is searched at most, and the context before and behind it. From 5 s, 2 s and .5 s on nothing
        more is gained (parakeet-pocket); NeMo's 10 s of left context are kept for models that reach further.

    """

    confidence: Annotated[Method, Flag("What a token's confidence is computed from.")] = "max_prob"
    aggregation: Annotated[Aggregation, Flag("How the tokens' confidences make a word's.")] = "mean"
    segment_gap_s: Annotated[Seconds | None, Flag("Begin a segment also after such a pause.", unit="seconds")] = Field(
        default=None, gt=0
    )
    attention: Annotated[Literal["auto", "full", "windows"], Flag("auto: full up to the limit, windows beyond.")] = (
        "auto"
    )
    full_attention_s: Annotated[
        Seconds | None, Flag("Default: the artifact's, see doctor.", "--full-attention-limit", "seconds")
    ] = Field(default=None, gt=0)
    chunk_s: Annotated[Seconds, Flag("Of a window that are transcribed.", unit="seconds")] = Field(default=30.0, ge=1)
    left_s: Annotated[Seconds, Flag("Of a window before them.", "--left-context", "seconds")] = Field(
        default=10.0, ge=0
    )
    right_s: Annotated[Seconds, Flag("Of a window behind them.", "--right-context", "seconds")] = Field(
        default=2.0, ge=0
    )
