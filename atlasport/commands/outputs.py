"""Files that `atlasport run --out` writes, and parsing of its options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.families import Format
from runtime.results import Result


class OutputFiles:
    """Writes `<out>/<recording's stem>.<suffix>`; checks formats and name clashes before anything runs.

    Parameters
    ----------
    out : Path or None
        The folder, made if it is not there; None writes nothing.
    names : str or None
        Names of `formats` with commas between them; None for the first one.
    formats : Mapping[str, Format]
        What the model's family can write.
    audio : Sequence[Path]
        The recordings.

    Raises
    ------
    InputError
        No such format, two recordings of one name, or formats without a folder.

    """

    def __init__(
        self, out: Path | None, names: str | None, formats: Mapping[str, Format], audio: Sequence[Path]
    ) -> None:
        chosen = [name.strip() for name in names.split(",")] if names else list(formats)[:1]
        unknown = [name for name in chosen if name not in formats]
        if unknown:
            raise InputError(f"--format: expected some of {', '.join(formats)}, found {unknown[0]!r}")
        if out is None and names is not None:
            raise InputError("--format: expected --out FOLDER beside it, found none; name a folder for the files")
        clashes = [stem for stem, count in Counter(path.stem for path in audio).items() if count > 1]
        if out and clashes:
            raise InputError(f"--out: several recordings are named {clashes[0]!r}; rename one or run them one by one")
        self._out = out
        self._formats = {name: formats[name] for name in chosen} if out else {}
        if out:
            out.mkdir(parents=True, exist_ok=True)

    @property
    def options(self) -> dict[str, Any]:
        """The options that the formats need."""
        return {name: value for format_ in self._formats.values() for name, value in format_.options.items()}

    def write(self, path: Path, result: Result) -> None:
        """Write the result for recording `path` in every format; a file appears whole or not at all."""
        if self._out is None:
            return
        for name, format_ in self._formats.items():
            target = self._out / f"{path.stem}.{format_.suffix or name}"
            partial = target.with_name(f".{target.name}.partial")
            try:
                format_.write(result, partial)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)


def parse_clip(clip: str | None) -> tuple[float, float | None] | None:
    """Return start and end in seconds of `--clip START,END`; the end is None where it is left out."""
    if clip is None:
        return None
    start, _, end = clip.partition(",")
    try:
        return float(start), float(end) if end.strip() else None
    except ValueError as error:
        raise InputError(f"--clip: expected START,END in seconds, as in 1.5,20; found {clip!r}") from error


def parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Return the numbers of a comma-separated option."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option}: expected numbers with commas between them, found {text!r}") from error
