"""What every results file begins with: which artifact, on what, with which versions and flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Protocol

from runtime.artifact import Artifact
from runtime.ascend import AscendFacts
from runtime.engines.probe import is_simulated
from verify import environment
from verify.devices import merged
from verify.results import Subject


class Section(Protocol):
    """An engine's part of a results file, with what its device had in force and loaded."""

    @property
    def simulated(self) -> bool:
        """Whether it was a stand-in."""

    @property
    def flags(self) -> Mapping[str, str]:
        """Settings that change numbers or speed."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Of what the device's engine loaded."""


def subject_of(
    artifact: Artifact,
    device: str,
    threads: int | None,
    selection: tuple[str, ...] | None,
    *,
    sections: Sequence[Section],
    ascend: AscendFacts | None,
) -> Subject:
    """Return the facts of a run that began now; `Subject` says what they are."""
    content = artifact.content
    versions = environment.versions() | (ascend.to_strings() if ascend else {})
    return Subject(
        model=content.model,
        variant=content.variant,
        weights=content.source.weights,
        content_sha256=artifact.manifest.content_sha256,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=device,
        simulated=any(section.simulated for section in sections) or (ascend is not None and is_simulated(versions)),
        versions=versions | merged(section.versions for section in sections),
        flags={
            "threads": "engine's choice" if threads is None else str(threads),
            **merged(section.flags for section in sections),
            **environment.variables(),
        },
        selection=selection,
    )


def facts_of(subject: Subject) -> dict[str, Any]:
    """Return the fields of a subject, with which a results file is made."""
    return {name: getattr(subject, name) for name in Subject.model_fields}
