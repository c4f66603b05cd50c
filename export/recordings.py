"""The recordings of an artifact: which they are, what people say is in them, and whether the golden texts are that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.golden import Clip
from export.registry import DEFAULT_RECORDINGS, REPOSITORY_ROOT
from runtime.annotations import annotation_of, recordings_in
from runtime.audio import open_audio
from runtime.errors import GateError, InputError
from runtime.manifest import Recording
from runtime.spoken import LARGEST_RATE, error_rate

SAMPLES = REPOSITORY_ROOT / "samples"
_LISTED = 6


def read_clips(paths: Sequence[Path]) -> tuple[Clip, ...]:
    """Return recordings with what is known to be in them.

    Parameters
    ----------
    paths : Sequence[Path]
        Audio files, or folders of them. Beside each may lie an annotation of the same name; see `annotation_of`.

    Raises
    ------
    InputError
        A file that is no recording or no transcript, two of the same name, or a folder without any.

    """
    files = [file for path in paths for file in (recordings_in(path) if path.is_dir() else (path,))]
    clips = tuple(Clip(file, annotation_of(file), is_own=file.parent.resolve() != SAMPLES) for file in files)
    for clip in clips:
        same = [other.path.name for other in clips if other.path.stem == clip.path.stem]
        if len(same) > 1:
            raise InputError(f"recordings: expected files of different names, found {' and '.join(same)}; rename one")
        if not clip.path.name.isprintable() or "\\" in clip.path.name:
            raise InputError(f"{str(clip.path)!r}: expected a file name that can be printed, without \\; rename it")
        open_audio(clip.path)
    return clips


def not_judged(
    clip: Clip, recording: Recording, languages: frozenset[str] | None, *, trained: bool, in_registry: bool = True
) -> str | None:
    """Return why a golden text is not judged against what was spoken, None where it is.

    Parameters
    ----------
    clip, recording
        The file, and what the golden run made of it.
    languages : frozenset[str] or None
        Codes of the languages that the model writes as they are spoken; None where that is not known.
    trained : bool
        False for random weights.
    in_registry : bool
        Whether the registry has the checkpoint; what others make of any sample but the plainest, nobody knows.

    """
    strange = not in_registry and not clip.is_own and clip.path.name not in DEFAULT_RECORDINGS
    if not trained or strange:
        return "the checkpoint is none of the registry's" if trained else "the weights are random"
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


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")  # noqa: PLR2004 - half a line
