"""How to transcribe: what the command line's options set, and what a manifest's recordings keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from runtime.families.parakeet_tdt.hotwords import MAX_WEIGHT, Hotword, hotword_from_text, read_hotwords
from runtime.fastconformer.options import FastConformerOptions, Seconds
from runtime.options import Flag


class ParakeetOptions(FastConformerOptions):
    """Options of one transcription, beside those that FastConformers have in common.

    Attributes
    ----------
    decode : {"host", "device"}
        Where the search for tokens runs: step by step on the CPU, to which the encoder's frames are copied once, or
        on the device in graphs of several steps. The tokens are the same.
    decode_steps : int or None
        Steps in one call on the device: one of those that the artifact has; None: the most.
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
