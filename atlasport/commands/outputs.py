"""Files that `atlasport run --out` writes, and parsing of its options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import InputError
from runtime.outputs import FORMATS, render
from runtime.results import Transcript


class OutputFiles:
    """Writes `<out>/<recording's stem>.<format>`; checks formats and name clashes before anything runs."""

    def __init__(self, out: Path | None, formats: str, audio: Sequence[Path]) -> None:
        self.out = out
        self.formats = [name.strip() for name in formats.split(",")]
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown:
            raise InputError(f"--format: expected some of {', '.join(sorted(FORMATS))}, found {unknown[0]!r}")
        clashes = [stem for stem, count in Counter(path.stem for path in audio).items() if count > 1]
        if out and clashes:
            raise InputError(f"--out: several recordings are named {clashes[0]!r}; rename one or run them one by one")
        if out:
            out.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, transcript: Transcript) -> None:
        """Write the transcript of recording `path` in every format; a file appears whole or not at all."""
        if self.out is None:
            return
        for name in self.formats:
            target = self.out / f"{path.stem}.{name}"
            partial = target.with_name(f".{target.name}.partial")
            try:
                partial.write_text(render(transcript, name), encoding="utf-8")
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


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """Return the numbers of a comma-separated option."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option}: expected numbers with commas between them, found {text!r}") from error
