"""What the options of all families have in common, and how the command line calls them."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from typing_extensions import Self

from runtime.errors import InputError
from runtime.results import SubtitleLimits


@dataclass(frozen=True)
class Flag:
    """A field's flag on the command line; a field without one is for Python only.

    Attributes
    ----------
    help : str
        One line for the command line's help; the field's default is added to it.
    name : str or None
        `--flag`; None: the field's name without the `_s` of seconds.
    unit : str
        What numbers count: "seconds", "tokens".
    parse : callable or None
        Makes what the model validates of what was typed; None: the model takes text.
    metavar : str or None
        What stands for the value in the help; None: told from the field's type and unit.
    several : bool
        It may be given several times, and the field gets all of them.

    """

    help: str
    name: str | None = None
    unit: str = ""
    parse: Callable[[str], Any] | None = None
    metavar: str | None = None
    several: bool = False


@dataclass(frozen=True)
class FieldFlag:
    """A flag of an options model with the field that it sets: the field's name, plain type and default."""

    name: str
    flag: Flag
    field: str
    type: Any
    default: Any

    @property
    def is_switch(self) -> bool:
        """Whether it is given as --flag or --no-flag."""
        return self.type is bool

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        if self.flag.metavar:
            return self.flag.metavar
        if get_origin(self.type) is Literal:
            return "|".join(map(str, get_args(self.type)))
        if self.type in {int, float}:
            return self.flag.unit.upper() or {int: "INTEGER", float: "NUMBER"}[self.type]
        return "TEXT"

    @property
    def help(self) -> str:
        """The help with the default, where there is one that can be typed."""
        shown = f"{self.default:g}" if isinstance(self.default, float) else self.default
        told = isinstance(shown, (str, int)) and not self.is_switch
        return f"{self.flag.help} Default: {shown}." if told else self.flag.help

    def value(self, typed: Any) -> Any:
        """Return what the model validates for what was typed: a bool, a text, or a sequence of them."""
        parse = self.flag.parse or (lambda text: text)
        if self.is_switch:
            return typed
        return [parse(text) for text in typed] if self.flag.several else parse(typed)


class RecognitionOptions(BaseModel):
    """Options of one recognition, from the command line, a keyword argument or a manifest's recording.

    Attributes
    ----------
    clip : tuple of float and (float or None), or None
        Recognise from START to END seconds only (END None: to the end), as if that were the recording; times in the
        result count from the recording's start all the same. May be given as text, "START,END".

    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: Annotated[
        tuple[float, float | None] | None, Flag("Seconds to recognise; END may be left out.", metavar="START,END")
    ] = None

    @field_validator("clip", mode="before")
    @classmethod
    def _split(cls, clip: Any) -> Any:
        if not isinstance(clip, str):
            return clip
        start, _, end = clip.partition(",")
        try:
            return float(start), float(end) if end.strip() else None
        except ValueError as error:
            raise ValueError("expected START,END in seconds, as in 1.5,20") from error

    @field_validator("clip")
    @classmethod
    def _rising(cls, clip: tuple[float, float | None] | None) -> tuple[float, float | None] | None:
        if clip is not None:
            start, end = clip
            if not (math.isfinite(start) and start >= 0 and (end is None or (math.isfinite(end) and end > start))):
                raise ValueError(f"expected seconds START,END with 0 <= START < END, found {start:g},{end}")
        return clip

    @property
    def start_s(self) -> float:
        """Where the clip begins, in seconds."""
        return self.clip[0] if self.clip else 0.0

    @property
    def end_s(self) -> float | None:
        """Where the clip ends, in seconds; None: with the recording."""
        return self.clip[1] if self.clip else None

    def seconds_of(self, duration_s: float) -> float:
        """Return how much of a recording is recognised; `Audio.blocks` refuses a clip that lies behind its end."""
        return min(self.end_s or math.inf, duration_s) - self.start_s

    @classmethod
    def flags(cls) -> dict[str, FieldFlag]:
        """Return the flags that set the model's fields, in order."""
        found = {}
        for name, field in cls.model_fields.items():
            for flag in (part for part in field.metadata if isinstance(part, Flag)):
                typed = flag.name or "--" + name.removesuffix("_s").replace("_", "-")
                default = field.get_default(call_default_factory=True)
                found[typed] = FieldFlag(typed, flag, name, _plain_type(field.annotation), default)
        return found

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
        return cls._validated(values, {name: f"option {name}" for name in values})

    @classmethod
    def from_flags(cls, typed: Mapping[str, Any], needed: Mapping[str, Any] | None = None) -> Self:
        """Return the options of a command line.

        Parameters
        ----------
        typed : mapping of str
            What was typed behind each flag: a text, a sequence of texts where it may be given several times, a bool.
        needed : mapping of str, optional
            Values of fields that no flag was typed for.

        Raises
        ------
        InputError
            A flag that this family does not have, or a value out of range; named by the flag.

        """
        flags, values = cls.flags(), dict[str, Any]()
        names = {flag.field: name for name, flag in reversed(flags.items())}
        for name, value in typed.items():
            if name not in flags:
                raise InputError(f"{name}: this model's family has no such option; it has {', '.join(flags)}")
            flag = flags[name]
            made = flag.value(value)
            names[flag.field] = f"{names[flag.field]} {name}" if flag.field in values else name
            values[flag.field] = [*values[flag.field], *made] if flag.field in values else made
        return cls._validated({**(needed or {}), **values}, names)

    @classmethod
    def _validated(cls, values: Mapping[str, Any], names: Mapping[str, str]) -> Self:
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            field, *inner = map(str, first["loc"])
            name = ".".join([names.get(field, f"option {field}"), *inner])
            raise InputError(f"{name}: {first['msg']}, found {first['input']!r}") from error


class SubtitleOptions(RecognitionOptions):
    """How subtitles of speech are cut.

    Attributes
    ----------
    max_line_width : int or None
        Characters of a line of subtitles.
    max_line_count : int or None
        Lines of a subtitle; beside `max_line_width`, and subtitles then go on over the ends of segments.
    max_words_per_line : int or None
        Words of a subtitle; nothing beside the other two.
    highlight_words : bool
        Underline each word of a subtitle while it is spoken.

    """

    max_line_width: Annotated[int | None, Flag("Of a line of subtitles.", unit="characters")] = Field(None, ge=1)
    max_line_count: Annotated[int | None, Flag("Of a subtitle, beside --max-line-width.", unit="lines")] = Field(
        None, ge=1
    )
    max_words_per_line: Annotated[int | None, Flag("Of a subtitle.", unit="words")] = Field(None, ge=1)
    highlight_words: Annotated[bool, Flag("Underline each word of a subtitle while it is spoken.")] = False

    @field_validator("max_line_count")
    @classmethod
    def _of_lines(cls, count: int | None, info: ValidationInfo) -> int | None:
        if count is not None and info.data.get("max_line_width") is None:
            raise ValueError("expected --max-line-width beside it")
        return count

    @property
    def subtitles(self) -> SubtitleLimits:
        """The limits of subtitles."""
        return SubtitleLimits(
            self.max_line_width, self.max_line_count, self.max_words_per_line, highlight_words=self.highlight_words
        )


def _plain_type(annotation: Any) -> Any:
    """Return a field's type without None and without what is annotated."""
    if get_origin(annotation) in {Union, types.UnionType}:
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    return _plain_type(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation
