"""Files that `atlasport run --out` writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.family import Family, Format
from runtime.results import Result


class OutputFiles:
    """Writes `<out>/<recording's stem>.<suffix>`; checks formats and name clashes before anything runs.

    Parameters
    ----------
    out : Path or None
        The folder, made if it is not there; None writes nothing.
    names : str or None
        Names of formats with commas between them; None for the usual one.
    family : Family
        The model's.
    audio : Sequence[Path]
        The recordings.

    Attributes
    ----------
    formats : mapping of str to Format
        Those that are written.

    Raises
    ------
    InputError
        No such format, two recordings of one name, or formats without a folder.

    """

    def __init__(self, out: Path | None, names: str | None, family: Family[Any, Any], audio: Sequence[Path]) -> None:
        chosen = family.formats_named([name.strip() for name in names.split(",")] if names else [])
        if out is None and names is not None:
            raise InputError("--format: expected --out FOLDER beside it, found none; name a folder for the files")
        clashes = [stem for stem, count in Counter(path.stem for path in audio).items() if count > 1]
        if out and clashes:
            raise InputError(f"--out: several recordings are named {clashes[0]!r}; rename one or run them one by one")
        self._out = out
        self.formats: Mapping[str, Format[Any]] = chosen if out else {}
        if out:
            out.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, result: Result) -> None:
        """Write the result for recording `path` in every format; a file appears whole or not at all."""
        if self._out is None:
            return
        for name, format_ in self.formats.items():
            target = self._out / f"{path.stem}.{format_.suffix or name}"
            partial = target.with_name(f".{target.name}.partial")
            try:
                format_.write(result, partial)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
