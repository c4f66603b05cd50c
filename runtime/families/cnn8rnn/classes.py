"""The names of a model's sound classes, from the `classes.txt` beside its checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from runtime.errors import InputError


def read_classes(path: Path, count: int) -> tuple[str, ...]:
    """Return the labels in a file of one label a line, in the order of the network's outputs.

    Parameters
    ----------
    path : Path
        UTF-8 text; space around a label is dropped, as are empty lines at the end.
    count : int
        Number of classes of the network.

    Raises
    ------
    InputError
        The file is missing or not text, has another number of lines, an empty one, or a label twice.

    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected {count} class labels, one a line, found no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{path}: expected {count} class labels, one a line; cannot read it: {reason}") from error
    labels = tuple(line.strip() for line in lines)
    if len(labels) != count:
        raise InputError(
            f"{path}: expected {count} class labels, one a line, as the network has outputs, found {len(labels)}"
        )
    if not all(labels):
        raise InputError(f"{path}: expected a class label on every line, found line {labels.index('') + 1} empty")
    label, times = Counter(labels).most_common(1)[0]
    if times > 1:
        first, second = [number for number, name in enumerate(labels, 1) if name == label][:2]
        raise InputError(
            f"{path}: expected {count} different class labels, found {label!r} on lines {first} and {second}"
        )
    return labels


def find_labels(wanted: Iterable[str], labels: Sequence[str], option: str) -> list[int]:
    """Return the places of the wanted labels, in any case where none is spelled alike; `option` names their origin.

    Raises
    ------
    InputError
        The model has no such class; the message gives the nearest ones.

    """
    exact = {label: place for place, label in enumerate(labels)}
    folded = {label.casefold(): place for label, place in exact.items()}
    found = []
    for given in wanted:
        label = given.strip()
        place = exact.get(label, folded.get(label.casefold()))
        if place is None:
            near = [repr(labels[folded[name]]) for name in get_close_matches(label.casefold(), folded, n=3, cutoff=0.5)]
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {_some(labels)}"
            raise InputError(f"--{option}: label {given!r}: the model has no such class; {hint}")
        found.append(place)
    return found


def _some(labels: Sequence[str]) -> str:
    shown = 10
    more = f" and {len(labels) - shown} more" if len(labels) > shown else ""
    return ", ".join(map(repr, labels[:shown])) + more
