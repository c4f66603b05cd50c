"""The model families that the runtime knows, one package each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from runtime.artifact import Artifact
from runtime.engines import open_engine
from runtime.engines.base import DEFAULT_SETTINGS, Engine, EngineSettings
from runtime.errors import InputError
from runtime.results import Result

if TYPE_CHECKING:  # reading audio loads soundfile and soxr, which exporting does not need
    from runtime.audio import Audio

# A family's frozen options model: WhisperOptions, Cnn8RnnOptions.
Options: TypeAlias = Any


class Recognizer(Protocol):
    """Turns recordings into text or sound events with one opened artifact."""

    def recognize(self, audio: Audio, options: Options = ..., on_progress: Any = ...) -> Result:
        """Return what is heard in a recording; `on_progress` is told seconds done and seconds in all."""


class StreamingRecognizer(Recognizer, Protocol):
    """A recogniser that gives its text away while it is made."""

    def recognize(
        self,
        audio: Audio,
        options: Options = ...,
        on_progress: Any = ...,
        on_text: Callable[[str], object] | None = ...,
    ) -> Result:
        """Return what is heard in a recording; `on_text` is given the text piece by piece."""


class BatchRecognizer(Recognizer, Protocol):
    """A recogniser that takes several recordings at once."""

    def recognize_batch(self, audios: Sequence[Audio], options: Options = ...) -> Sequence[Result]:
        """Return what is heard in each recording."""


@dataclass(frozen=True)
class Format:
    """A kind of file for a result: how it is written, and the options that the result must have been made with.

    The file's name ends in `suffix`, or in the format's name where that is None.
    """

    write: Callable[[Any, Path], None]
    options: Mapping[str, Any] = field(default_factory=dict)
    suffix: str | None = None


@dataclass(frozen=True)
class Family:
    """How to open a family's artifact with an engine, read options, write results.

    Opening is told in how many seconds the engine was opened, None if that is not known.
    `graphs` are those to open at once, None for all. With `in_batches` the recogniser is a `BatchRecognizer`, with
    `streams` a `StreamingRecognizer`. `own_names` are those of options that the command line calls by another name.
    """

    open: Callable[[Artifact, Engine, float | None], Recognizer]
    parse_options: Callable[[Mapping[str, Any]], Options]
    formats: Mapping[str, Format]
    graphs: Sequence[str] | None = None
    in_batches: bool = False
    streams: bool = False
    own_names: Mapping[str, str] = field(default_factory=dict)


def _whisper() -> Family:
    from runtime.families.whisper.options import WhisperOptions
    from runtime.families.whisper.outputs import FORMATS
    from runtime.families.whisper.recognizer import WhisperRecognizer

    return Family(WhisperRecognizer, WhisperOptions.parse, FORMATS, own_names={"prompt": "initial_prompt"})


def _cnn8rnn() -> Family:
    from runtime.families.cnn8rnn.options import Cnn8RnnOptions
    from runtime.families.cnn8rnn.outputs import FORMATS
    from runtime.families.cnn8rnn.recognizer import Cnn8RnnRecognizer

    return Family(Cnn8RnnRecognizer, Cnn8RnnOptions.parse, FORMATS)


def _parakeet_tdt() -> Family:
    from runtime.families.parakeet_tdt.options import ParakeetOptions
    from runtime.families.parakeet_tdt.outputs import FORMATS
    from runtime.families.parakeet_tdt.recognizer import ParakeetRecognizer
    from runtime.families.parakeet_tdt.settings import ENCODER, FRONTEND, JOIN, STEP

    # The search on the device is an option: its graphs of many steps are opened when they are called.
    graphs = (FRONTEND, ENCODER, STEP, JOIN)
    return Family(ParakeetRecognizer, ParakeetOptions.parse, FORMATS, graphs, in_batches=True)


def _granite_speech() -> Family:
    from runtime.families.granite_speech.options import GraniteOptions
    from runtime.families.granite_speech.outputs import FORMATS
    from runtime.families.granite_speech.recognizer import GraniteRecognizer

    return Family(GraniteRecognizer, GraniteOptions.parse, FORMATS, streams=True)


FAMILIES: dict[str, Callable[[], Family]] = {
    "whisper": _whisper,
    "cnn8rnn": _cnn8rnn,
    "parakeet_tdt": _parakeet_tdt,
    "granite_speech": _granite_speech,
}


def family_of(artifact: Artifact) -> Family:
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
    return FAMILIES[name]()


def open_recognizer(
    artifact: Artifact,
    engine_name: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    settings: EngineSettings = DEFAULT_SETTINGS,
) -> Recognizer:
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
) -> Recognizer:
    family = family_of(artifact)
    started = time.perf_counter()
    # Graphs at once: opening is then part of the loading time, not of the first recording's.
    graphs = list(artifact.content.graphs) if family.graphs is None else family.graphs
    engine = open_engine(artifact, engine_name, device, threads, graphs, settings)
    return family.open(artifact, engine, time.perf_counter() - started)
