"""The model families that the runtime knows, one module or package each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from runtime.artifact import Artifact
from runtime.engines import open_engine
from runtime.engines.base import Engine
from runtime.errors import InputError
from runtime.results import Transcript

if TYPE_CHECKING:  # reading audio loads soundfile and soxr, which exporting does not need
    from runtime.audio import Audio

# A family's frozen options model: WhisperOptions.
Options: TypeAlias = Any


class Recognizer(Protocol):
    """Turns recordings into transcripts with one opened artifact."""

    def transcribe(self, audio: Audio, options: Options = ..., on_progress: Any = ...) -> Transcript:
        """Return the text of a recording; `on_progress` is told seconds done and seconds in all."""


@dataclass(frozen=True)
class Family:
    """How to open a family's artifact with an engine (opened in `load_s` seconds), and how to read its options."""

    open: Callable[[Artifact, Engine, float], Recognizer]
    parse_options: Callable[[Mapping[str, Any]], Options]


def _open_whisper(artifact: Artifact, engine: Engine, load_s: float) -> Recognizer:
    from runtime.families.whisper.transcribe import WhisperRecognizer

    return WhisperRecognizer(artifact, engine, load_s)


def _whisper_options(values: Mapping[str, Any]) -> Options:
    from runtime.families.whisper.options import WhisperOptions

    return WhisperOptions.parse(values)


FAMILIES: dict[str, Family] = {"whisper": Family(_open_whisper, _whisper_options)}


def parse_options(artifact: Artifact, values: Mapping[str, Any]) -> Options:
    """Return the options of the artifact's family from keyword arguments or a manifest's JSON.

    Raises
    ------
    InputError
        An unknown option, a value out of range, or a family that this runtime does not know.

    """
    return _family(artifact).parse_options(values)


def open_recognizer(
    artifact: Artifact, engine_name: str | None = None, device: str = "cpu", threads: int | None = None
) -> Recognizer:
    """Open the artifact's graphs with an engine and return its family's recogniser.

    Without a name, with the first engine that has graphs in the artifact and runs on the device.

    Raises
    ------
    InputError
        An engine, a device or a family that this runtime does not know.
    EnvironmentNotFitError
        The engine's package or the device is missing.

    """
    family = _family(artifact)
    started = time.perf_counter()
    # All graphs at once: opening is then part of the loading time, not of the first recording's.
    engine = open_engine(artifact, engine_name, device, threads, list(artifact.content.graphs))
    return family.open(artifact, engine, time.perf_counter() - started)


def _family(artifact: Artifact) -> Family:
    name = artifact.content.family
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        msg = f"{artifact.path}: family {name!r}, this version runs {known}; update atlasport on this machine"
        raise InputError(msg)
    return FAMILIES[name]
