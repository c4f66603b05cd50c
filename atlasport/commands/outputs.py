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

    Of several recordings, formats that say so write one more file: the lines of all that are done, in their order.

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
        self._together = {format_.together for format_ in chosen.values() if format_.together and len(audio) > 1}
        owned = {f"{path.stem}.{format_.suffix or name}" for path in audio for name, format_ in chosen.items()}
        if out and self._together & owned:
            taken = min(self._together & owned)
            raise InputError(f"--out: {taken} is to hold the lines of all recordings; rename the one that is called so")
        if out:
            out.mkdir(parents=True, exist_ok=True)
            for name in self._together:
                (out / name).unlink(missing_ok=True)

    def write(self, path: Path, result: Result) -> None:
        """Write the result for recording `path` in every format; a file appears whole or not at all."""
        if self._out is None:
            return
        for name, format_ in self.formats.items():
            target = self._out / f"{path.stem}.{format_.suffix or name}"
            partial = target.with_name(f".{target.name}.partial")
            try:
                format_.write(result, partial)
                if format_.together in self._together:
                    self._add(self._out / str(format_.together), partial)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)

    @staticmethod
    def _add(target: Path, written: Path) -> None:
        """Append a recording's lines, and before the first of them the header."""
        header, *lines = written.read_text(encoding="utf-8").splitlines(keepends=True)
        with target.open("a", encoding="utf-8", newline="") as file:
            file.writelines(lines if file.tell() else [header, *lines])
