"""What the options of all families have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from typing_extensions import Self

from runtime.errors import InputError


class RecognitionOptions(BaseModel):
    """Options of one recognition, from the command line, a keyword argument or a manifest's recording.

    Attributes
    ----------
    clip : tuple of float and (float or None), or None
        Recognise from START to END seconds only (END None: to the end), as if that were the recording; times in the
        result count from the recording's start all the same.

    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: tuple[float, float | None] | None = None

    @field_validator("clip")
    @classmethod
    def _rising(cls, clip: tuple[float, float | None] | None) -> tuple[float, float | None] | None:
        if clip is not None:
            start, end = clip
            if not (math.isfinite(start) and start >= 0 and (end is None or (math.isfinite(end) and end > start))):
                raise ValueError(f"expected seconds START,END with 0 <= START < END, found {start:g},{end}")
        return clip

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Return the options in `values`, defaults for the others.

        Raises
        ------
        InputError
            An option that this family does not have, or a value out of range.

        """
        for name in values:
            if name not in cls.model_fields:
                known = ", ".join(sorted(cls.model_fields))
                raise InputError(f"option {name}: this model's family has no such option; it has {known}")
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise InputError(f"option {name}: {first['msg']}, found {first['input']!r}") from error
