"""How to find sound events: what the command line's options set, and what a manifest's recordings keep."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from runtime.engines.base import Floats
from runtime.errors import InputError
from runtime.families.cnn8rnn.classes import find_labels
from runtime.options import Flag, RecognitionOptions

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# High alone, low in proportion; or high and low.
Thresholds: TypeAlias = float | tuple[float, float]
_MAX_MEDIAN = 125  # 5 s: what is held of a stream between two windows


class Cnn8RnnOptions(RecognitionOptions):
    """Options of one recognition. Scores have a step of 40 ms; nothing finer can be asked for.

    An event of a class is a run of scores above `low` of which one is above `high`, after the median filter. Events
    of a class with a short gap between them are merged, then short ones dropped.

    Attributes
    ----------
    top_k : int
        Tags in the result: the classes with the highest scores of the whole recording.
    high, low : float
        The double threshold, 0 to 1; low None: a third of high. An event begins and ends with `low` and exists by
        `high` (the defaults, 0.75 and 0.25, are wsntxxn's for this model).
    thresholds : mapping of str to float or (float, float)
        Thresholds of single classes, by label: high and low, or high alone with low in the proportion of the common
        ones. A path reads them from a file (`read_thresholds`).
    median : int
        Length of the median filter in scores of 40 ms, odd; 1 filters nothing. At both ends of the recording the
        outermost score counts as repeated.
    gap_s : float
        Merge events of a class if the pause between them is at most so long.
    min_duration_s : float
        Drop events that are shorter, counted in whole scores.
    labels : tuple of str or None
        Only these classes, in tags, events and framewise scores; None: all.
    scores : bool
        Keep the framewise scores and a spectrogram: npz, csv and html need them. They go to a temporary file (TMPDIR)
        of 4 bytes a score: 161 MB an hour for 447 classes.

    """

    top_k: Annotated[int, Flag("To give, best first.", unit="tags")] = Field(default=10, ge=1)
    high: Annotated[float, Flag("An event's score must exceed this somewhere.")] = Field(default=0.75, gt=0, le=1)
    low: Annotated[float | None, Flag("An event lasts while its score exceeds this. Default: high / 3.")] = Field(
        default=None, ge=0, le=1
    )
    thresholds: Annotated[
        dict[str, Thresholds],
        Flag("Thresholds of single classes: a JSON or TSV file of label, high and low.", parse=Path, metavar="PATH"),
    ] = Field(default_factory=dict)
    median: Annotated[int, Flag("Median filter over so many scores of 40 ms.")] = Field(default=1, ge=1, le=_MAX_MEDIAN)
    gap_s: Annotated[Seconds, Flag("Merge events of a class that are at most so far apart.", unit="seconds")] = 0.0
    min_duration_s: Annotated[Seconds, Flag("Drop shorter events.", unit="seconds")] = 0.0
    labels: Annotated[
        tuple[str, ...] | None, Flag("Only these classes, with ';' between them.", parse=partial(str.split, sep=";"))
    ] = Field(default=None, min_length=1)
    scores: bool = False

    @field_validator("low")
    @classmethod
    def _not_above_high(cls, low: float | None, info: ValidationInfo) -> float | None:
        high = info.data.get("high", 1.0)
        if low is not None and low > high:
            raise ValueError(f"expected at most the high threshold, {high:g}")
        return low

    @field_validator("median")
    @classmethod
    def _odd(cls, median: int) -> int:
        if median % 2 == 0:
            raise ValueError("expected an odd number of scores")
        return median

    @field_validator("thresholds", mode="before")
    @classmethod
    def _by_label(cls, value: Any) -> Any:
        if isinstance(value, (str, Path)):
            return read_thresholds(Path(value))
        if not isinstance(value, Mapping):
            raise ValueError("expected thresholds by label, or the path of a file of them")  # noqa: TRY004 - pydantic's
        return {label: _thresholds(label, given) for label, given in value.items()}

    @property
    def common_low(self) -> float:
        """The low threshold of classes without one of their own."""
        return self.high / 3 if self.low is None else self.low

    def thresholds_of(self, labels: Sequence[str], known: Sequence[str]) -> tuple[Floats, Floats]:
        """Return the high and the low thresholds, f32 [n] each, of the classes `labels` out of those `known`.

        Raises
        ------
        InputError
            `thresholds` names a class that is not known.

        """
        own = dict(zip(find_labels(self.thresholds, known, "thresholds"), self.thresholds.values(), strict=True))
        pairs = []
        for place in find_labels(labels, known, "labels"):
            given = own.get(place, (self.high, self.common_low))
            pairs.append(given if isinstance(given, tuple) else (given, given * self.common_low / self.high))
        high, low = np.array(pairs, np.float32).T
        return high, low


def read_thresholds(path: Path) -> dict[str, Thresholds]:
    """Return the thresholds of single classes from a file.

    JSON: an object of label to high, or to [high, low]. Anything else is read as tab-separated: label, high and
    (where given) low, after an optional line that begins with `label`.

    Raises
    ------
    InputError
        The file cannot be read, a line or value is something else, or a label is there twice.

    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{path}: expected thresholds of classes in JSON or TSV; cannot read it: {reason}") from error
    try:
        pairs = _json_pairs(text) if text.lstrip().startswith(("{", "[")) else _tsv_pairs(text)
        found: dict[str, Thresholds] = {}
        for label, given in pairs:
            if label in found:
                raise ValueError(f"label {label!r} is there twice")  # noqa: TRY301 - one place adds the file's name
            found[label] = _thresholds(label, given)
    except ValueError as error:
        raise InputError(f"{path}: expected thresholds of classes, label and high and low: {error}") from error
    return found


def _json_pairs(text: str) -> list[tuple[str, Any]]:
    # The outermost object comes last, and as pairs: a label that is there twice must not vanish.
    pairs = json.loads(text, object_pairs_hook=list)
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError("found JSON that is not an object of labels")
    return pairs


def _tsv_pairs(text: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE), 1):
        if not any(row) or (number == 1 and row[0].strip() == "label"):
            continue
        label, *numbers = (cell.strip() for cell in row)
        try:
            given = [float(cell) for cell in numbers if cell]
        except ValueError:
            raise ValueError(f"line {number}: expected numbers after the label, found {row!r}") from None
        pairs.append((label, given[0] if len(given) == 1 else given))
    return pairs


def _thresholds(label: Any, given: Any) -> Thresholds:
    """Return a class's thresholds, checked."""
    numbers = [given] if isinstance(given, (int, float)) else given
    pair = 2
    if (
        not isinstance(label, str)
        or not isinstance(numbers, (list, tuple))
        or not 1 <= len(numbers) <= pair
        or not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)
        or not 1 >= numbers[0] >= numbers[-1] >= 0
        or numbers[0] == 0
    ):
        raise ValueError(f"{label!r}: expected high, or high and low, with 1 >= high >= low >= 0, found {given!r}")
    return float(numbers[0]) if len(numbers) == 1 else (float(numbers[0]), float(numbers[1]))
