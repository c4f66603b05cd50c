"""The recordings of an artifact: which they are, what people say is in them, and whether the golden texts are that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.golden import Clip
from export.json_files import read_json
from export.registry import REPOSITORY_ROOT
from runtime.audio import open_audio
from runtime.errors import GateError, InputError
from runtime.manifest import Recording
from runtime.spoken import LARGEST_RATE, error_rate

SAMPLES = REPOSITORY_ROOT / "samples"
# Beside a recording: what is in it.
_SIDECARS = (".json", ".txt")
_KEYS = ("text", "language", "events")
_LISTED = 6


def read_clips(paths: Sequence[Path]) -> tuple[Clip, ...]:
    """Return recordings with what is known to be in them.

    Parameters
    ----------
    paths : Sequence[Path]
        Audio files, or folders of them. Beside each may lie a transcript of the same name: `.txt` with the text, or
        `.json` with `text` and `language` (a code such as `de`), or with `events` of sounds.

    Raises
    ------
    InputError
        A file that is no recording or no transcript, two of the same name, or a folder without any.

    """
    files = [file for path in paths for file in (_recordings_in(path) if path.is_dir() else (path,))]
    clips = tuple(Clip(file, _reference(file), is_own=file.parent.resolve() != SAMPLES) for file in files)
    for clip in clips:
        same = [other.path.name for other in clips if other.path.stem == clip.path.stem]
        if len(same) > 1:
            raise InputError(f"recordings: expected files of different names, found {' and '.join(same)}; rename one")
        if not clip.path.name.isprintable() or "\\" in clip.path.name:
            raise InputError(f"{str(clip.path)!r}: expected a file name that can be printed, without \\; rename it")
        open_audio(clip.path)
    return clips


def not_judged(clip: Clip, recording: Recording, languages: frozenset[str] | None, *, trained: bool) -> str | None:
    """Return why a golden text is not judged against what was spoken, None where it is.

    Parameters
    ----------
    clip, recording
        The file, and what the golden run made of it.
    languages : frozenset[str] or None
        Codes of the languages that the model writes as they are spoken; None where that is not known.
    trained : bool
        False for random weights.

    """
    if not trained:
        return "the weights are random"
    if recording.options.get("task") == "translate":
        return "it is translated"
    language = (clip.reference or {}).get("language")
    if language is None or (clip.is_own and languages is None):
        return None
    if languages is None:
        return f"it is in {language!r}, and the model's languages are not known"
    if language not in languages:
        known = ", ".join(sorted(languages)[:_LISTED]) + (", ..." if len(languages) > _LISTED else "")
        return f"it is in {language!r}, and the model writes {known or 'no language as it is spoken'}"
    return None


def check_texts(recordings: Sequence[Recording], where: str) -> None:
    """Compare golden texts with what people say was spoken.

    Raises
    ------
    GateError
        A text is empty or has more errors than words or characters allow; names the recording, and shows both.

    """
    for recording in recordings:
        said = (recording.reference or {}).get("text")
        if recording.not_judged or not said or "text" not in recording.result:
            continue
        text = recording.result["text"]
        rate = error_rate(recording.reference, text)
        if rate is not None and rate.value > LARGEST_RATE:
            raise GateError(
                f"{where}: {recording.name}: {rate.kind} {rate.value:.2f} against what is spoken, limit "
                f"{LARGEST_RATE:g}: heard {_short(text)}, spoken {_short(said)}; nothing was exported: tokenizer, "
                "language or weights are not this model's, or --recordings of its own language are missing"
            )


def _recordings_in(folder: Path) -> list[Path]:
    files = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in _SIDECARS
    )
    if not files:
        raise InputError(f"{folder}: expected recordings, found none; give a folder that has some")
    return files


def _reference(path: Path) -> dict[str, Any] | None:
    """Return what is known to be in a recording: from the file beside it, or from samples.json of its folder."""
    beside = path.with_suffix(".json")
    if beside.is_file():
        return _checked(read_json(beside), beside)
    beside = path.with_suffix(".txt")
    if beside.is_file():
        try:
            return {"text": beside.read_text(encoding="utf-8-sig").strip()}
        except (OSError, ValueError) as error:
            raise InputError(f"{beside}: expected a transcript in UTF-8, cannot read it ({error})") from error
    listing = path.with_name("samples.json")
    known = read_json(listing).get(path.name) if listing.is_file() else None
    return None if known is None else _checked(known, listing)


def _checked(known: Mapping[str, Any], path: Path) -> dict[str, Any]:
    found = {name: known[name] for name in _KEYS if name in known} if isinstance(known, dict) else {}
    texts = [found[name] for name in ("text", "language") if found.get(name) is not None]
    if not found or not all(isinstance(text, str) for text in texts) or found.get("text", "") is None:
        raise InputError(f"{path}: expected an object with text and language, or events, found another; correct it")
    return found


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")  # noqa: PLR2004 - half a line
