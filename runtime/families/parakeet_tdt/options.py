"""How to transcribe: what the command line's options set, and what a manifest's recordings keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from runtime.families.parakeet_tdt.confidence import Aggregation, Method
from runtime.families.parakeet_tdt.hotwords import MAX_WEIGHT, Hotword, hotword_from_text, read_hotwords
from runtime.options import Flag, RecognitionOptions

Seconds = Annotated[float, Field(allow_inf_nan=False)]


class ParakeetOptions(RecognitionOptions):
    """Options of one transcription.

    Attributes
    ----------
    decode : {"host", "device"}
        Where the search for tokens runs: step by step on the CPU, to which the encoder's frames are copied once, or
        on the device in graphs of several steps. The tokens are the same.
    decode_steps : int or None
        Steps in one call on the device: one of those that the artifact has; None: the most.
    confidence : {"max_prob", "entropy"}
        What a token's confidence is computed from; see `confidence`.
    aggregation : {"mean", "min", "prod"}
        How the tokens' confidences make that of a word or a segment.
    segment_gap_s : float or None
        Begin a new segment also at a pause between two words of at least so many seconds; None: only after a word
        that ends in `.`, `?` or `!`.
    attention : {"auto", "full", "windows"}
        Encode a recording whole, or in windows that overlap; auto: in windows where it is longer than
        `full_attention_s`, and full refuses such a one. Memory grows with the square of what is encoded at once.
    full_attention_s : float or None
        Limit in seconds; None: the artifact's.
    chunk_s, left_s, right_s : float
        Window: what is searched at most, and the context before and behind it. From 5 s, 2 s and .5 s on nothing
        more is gained (parakeet-pocket); NeMo's 10 s of left context are kept for models that reach further.
    hotwords : sequence of Hotword
        Phrases to prefer, see `hotwords`. Each may be given as text, "phrase" or "phrase:weight", or as phrase and
        weight; a path, in place of all or of one, reads them from a file.
    hotword_weight : float
        Weight of those that have none: what is added to the logit of each of a phrase's tokens. 1 is NeMo's; more
        finds more, and hears more that was not said.

    """

    decode: Annotated[Literal["host", "device"], Flag("Where the search for tokens runs.")] = "host"
    decode_steps: Annotated[
        int | None, Flag("In one call on the device. Default: the most there are.", unit="steps")
    ] = Field(default=None, ge=1)
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
    hotwords: Annotated[
        tuple[Hotword, ...],
        Flag(
            "Phrases to prefer: a file of one a line, or phrase, tab, weight.",
            parse=lambda text: [Path(text)],
            metavar="PATH",
        ),
        Flag("A phrase to prefer, or phrase:weight; may be given several times.", "--hotword", several=True),
    ] = ()
    hotword_weight: Annotated[Seconds, Flag("Of hotwords that have none.")] = Field(default=1.0, gt=0, le=MAX_WEIGHT)

    @field_validator("hotwords", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, Path):
            return read_hotwords(value)
        if isinstance(value, (str, Hotword)) or not isinstance(value, Sequence):
            raise ValueError("expected a sequence of phrases, or the path of a file of them")  # noqa: TRY004 - pydantic's
        return tuple(hotword for given in value for hotword in _hotwords(given))

    @field_validator("hotwords")
    @classmethod
    def _on_the_host(cls, hotwords: tuple[Hotword, ...], info: ValidationInfo) -> tuple[Hotword, ...]:
        if hotwords and info.data.get("decode") == "device":
            raise ValueError("the search on the device takes no hotwords; expected none, or decode host")
        return hotwords


def _hotwords(given: Any) -> Sequence[Any]:
    """Return the hotwords of a text, of (phrase, weight), or of a file; pydantic judges anything else."""
    if isinstance(given, Path):
        return read_hotwords(given)
    if isinstance(given, str):
        return [hotword_from_text(given)]
    pair = 2
    return [Hotword(*given) if isinstance(given, Sequence) and len(given) == pair else given]
