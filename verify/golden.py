"""Chooses among an artifact's cases, teacher-forced runs and recordings."""

from __future__ import annotations

from fnmatch import fnmatchcase

from runtime.artifact import Artifact
from runtime.errors import InputError


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
