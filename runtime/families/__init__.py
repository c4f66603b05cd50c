"""The model families that the runtime knows, a folder each."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from runtime.artifact import Artifact
from runtime.engines import open_engine
from runtime.engines.base import DEFAULT_SETTINGS, EngineSettings
from runtime.errors import InputError
from runtime.family import Family, Recognizer

# Each module's FAMILY; loaded when it is asked for.
FAMILIES = {
    "whisper": "runtime.families.whisper.family",
    "granite_speech": "runtime.families.granite_speech.family",
    "parakeet_tdt": "runtime.families.parakeet_tdt.family",
    "parakeet_ctc": "runtime.families.parakeet_ctc.family",
    "cnn8rnn": "runtime.families.cnn8rnn.family",
}


def family_named(name: str) -> Family[Any, Any]:
    """Return a family of FAMILIES."""
    family: Family[Any, Any] = import_module(FAMILIES[name]).FAMILY
    return family


def family_of(artifact: Artifact) -> Family[Any, Any]:
    """Return how to run the artifact's family.

    Raises
    ------
    InputError
        This runtime does not know the family.

    """
    name = artifact.content.family
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(
            f"{artifact.path}: family {name!r}, this version runs {known}; update atlasport on this machine"
        )
    return family_named(name)


def open_recognizer(
    artifact: Artifact,
    engine_name: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    settings: EngineSettings = DEFAULT_SETTINGS,
) -> Recognizer[Any, Any]:
    """Open the artifact's graphs with an engine and return its family's recogniser.

    Without a name, with the first engine that has graphs in the artifact and runs on the device. The engine reads
    files by their paths: where an export has put another artifact in its place meanwhile, that one is checked and
    opened.

    Raises
    ------
    InputError
        An engine, a device or a family that this runtime does not know.
    EnvironmentNotFitError
        The engine's package or the device is missing.
    DamagedArtifactError
        A file that is only read now is damaged.

    """
    while True:
        try:
            recognizer = _open_recognizer(artifact, engine_name, device, threads, settings)
        except Exception:  # whatever comes of files of two artifacts
            if not artifact.is_replaced():
                raise
        else:
            if not artifact.is_replaced():
                return recognizer
        artifact = artifact.reopened()


def _open_recognizer(
    artifact: Artifact, engine_name: str | None, device: str, threads: int | None, settings: EngineSettings
) -> Recognizer[Any, Any]:
    family = family_of(artifact)
    started = time.perf_counter()
    # Graphs at once: opening is then part of the loading time, not of the first recording's.
    graphs = family.graphs or [name for name in artifact.content.graphs if name not in family.on_demand]
    engine = open_engine(artifact, engine_name, device, threads, graphs, settings)
    return family.open(artifact, engine, time.perf_counter() - started)
