"""Chooses among an artifact's cases, teacher-forced runs and recordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from runtime.artifact import Artifact
from runtime.errors import InputError
from runtime.manifest import Recording
from verify.results import EventAccuracy, RecordingAccuracy


def select(artifact: Artifact, patterns: tuple[str, ...] | None) -> set[str]:
    """Return the names of cases, teacher-forced runs and recordings that a pattern (`speech`, `step_*`) matches.

    Raises
    ------
    InputError
        A pattern matches nothing; the message lists the names.

    """
    content = artifact.content
    names = {case.name for case in content.cases}
    names |= {forced.name for forced in content.teacher_forced}
    names |= {recording.name for recording in content.recordings}
    if patterns is None:
        return names
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            msg = f"case {pattern!r}: {content.model} has none by that name; its cases are {', '.join(sorted(names))}"
            raise InputError(msg)
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def in_one_batch(
    recordings: Sequence[Recording], judged: Sequence[RecordingAccuracy | EventAccuracy]
) -> list[Recording]:
    """Return the recordings with the commonest options, of those whose transcripts were judged; one is no batch."""
    heard = {one.name for one in judged if isinstance(one, RecordingAccuracy) and not one.blocked}
    candidates = [recording for recording in recordings if recording.name in heard]
    usual = Counter(str(recording.options) for recording in candidates).most_common(1)
    batch = [recording for recording in candidates if str(recording.options) == usual[0][0]]
    return batch if batch[1:] else []
