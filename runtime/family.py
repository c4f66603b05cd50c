"""What a family is: a recogniser, its options, and the files that its results are written to."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Protocol, TypedDict, TypeVar

from typing_extensions import ParamSpec

from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.errors import InputError
from runtime.findings import WorkingMemory
from runtime.manifest import Content
from runtime.options import RecognitionOptions
from runtime.results import AudioInfo, Result, Segment
from runtime.timer import Timer

if TYPE_CHECKING:  # reading audio loads soundfile and soxr, which exporting does not need
    from runtime.audio import Audio

RecognizerT = TypeVar("RecognizerT", bound="Recognizer[Any, Any]")
P = ParamSpec("P")
ReturnT = TypeVar("ReturnT")
OptionsT = TypeVar("OptionsT", bound=RecognitionOptions)
ResultT = TypeVar("ResultT", bound=Result)


class Progress(Protocol):
    """Told how many seconds of how many are done."""

    def __call__(self, done_s: float, total_s: float, /) -> object:
        """Take note."""


class OnSegment(Protocol):
    """Told each segment of a transcript as it is found; recognisers of speech take one as `on_segment`."""

    def __call__(self, segment: Segment, /) -> object:
        """Take note."""


class Circumstances(TypedDict):
    """What every result says beside what was heard; see `Result`."""

    model: str
    variant: str
    device: str
    engine: str
    audio: AudioInfo
    timings: dict[str, float]
    simulated: bool


def in_turn(call: Callable[Concatenate[RecognizerT, P], ReturnT]) -> Callable[Concatenate[RecognizerT, P], ReturnT]:
    """Make calls of a recogniser's method wait for each other, whatever thread they come from.

    Caches, bound inputs and outputs, timers and a device's process are shared by all calls.
    """

    @wraps(call)
    def waiting(self: RecognizerT, /, *args: P.args, **kwargs: P.kwargs) -> ReturnT:
        with self.turn:
            return call(self, *args, **kwargs)

    return waiting


class Recognizer(ABC, Generic[OptionsT, ResultT]):
    """Turns recordings into text or sound events with one opened artifact.

    Several threads may use one: calls queue, since a device does one thing at a time. Two recognisers run side by side.

    Parameters
    ----------
    artifact : Artifact
        Of the recogniser's family.
    engine : Engine
        The artifact's graphs, opened.
    load_s : float or None
        What opening took, in seconds; goes into the timings.

    Raises
    ------
    DamagedArtifactError
        The manifest or a file does not describe a model of the family.

    """

    # The class of the options; a subclass says which. Its public methods that run graphs are `in_turn`.
    options_type: type[OptionsT]

    def __init__(self, artifact: Artifact, engine: Engine, load_s: float | None = None) -> None:
        self._artifact = artifact
        self._content = artifact.content
        self._engine = engine
        self._load_s = load_s
        self.turn = RLock()

    @property
    def content(self) -> Content:
        """What the artifact's manifest says of the model."""
        return self._content

    @property
    def engine(self) -> Engine:
        """The artifact's graphs on their device."""
        return self._engine

    @abstractmethod
    def recognize(self, audio: Audio, options: OptionsT = ..., on_progress: Progress | None = ...) -> ResultT:
        """Return what is heard in a recording of any length.

        Parameters
        ----------
        audio : Audio
            The recording.
        options : RecognitionOptions
            What to do with it; of the family's own class.
        on_progress : callable or None
            Called with seconds done and seconds in all.

        Raises
        ------
        InputError
            The audio cannot be read, the clip lies behind its end, or the model cannot do what an option asks for.
        EnvironmentNotFitError
            The device returned numbers that are not finite.

        """

    def detect_language(self, audio: Audio, options: OptionsT | None = None) -> tuple[str, float]:
        """Return the code of the language that is spoken in a recording, "" where nobody speaks, and its probability.

        Raises
        ------
        InputError
            The model does not tell languages apart.

        """
        del audio, options
        raise InputError(f"{self._content.model}: expected a model that tells languages apart")

    def options(self, **values: Any) -> OptionsT:
        """Return options by name, defaults for the others; InputError where there is no such option or value."""
        return self.options_type.parse(values)

    @staticmethod
    def _timings(timer: Timer, started: float, audio_s: float) -> dict[str, float]:
        """Return the timer's stages, `total_s` since `started` (by time.perf_counter) and `rtf`."""
        total_s = time.perf_counter() - started
        return {**timer.take(), "total_s": total_s, "rtf": total_s / audio_s}

    def _circumstances(self, audio: Audio, options: OptionsT, timings: Mapping[str, float]) -> Circumstances:
        load = {} if self._load_s is None else {"load_s": self._load_s}
        return {
            "model": self._content.model,
            "variant": self._content.variant,
            "device": self._engine.device,
            "engine": self._engine.name,
            "audio": replace(audio.info, duration_s=options.seconds_of(audio.info.duration_s)),
            "timings": {**load, **timings},
            "simulated": self._engine.probe.facts.simulated,
        }


class StreamingRecognizer(Recognizer[OptionsT, ResultT]):
    """A recogniser that gives its text away while it is made."""

    @abstractmethod
    def recognize(
        self,
        audio: Audio,
        options: OptionsT = ...,
        on_progress: Progress | None = ...,
        on_text: Callable[[str], object] | None = ...,
    ) -> ResultT:
        """Return what is heard in a recording; `on_text` is given the text piece by piece."""


class BatchRecognizer(Recognizer[OptionsT, ResultT]):
    """A recogniser that takes several recordings at once."""

    @abstractmethod
    def recognize_batch(
        self, audios: Sequence[Audio], options: OptionsT = ..., on_progress: Progress | None = ...
    ) -> Sequence[ResultT]:
        """Return what is heard in each recording; any of them that cannot be read fails all."""


@dataclass(frozen=True)
class Format(Generic[ResultT]):
    """A kind of file for a result: how it is written, and the options that the result must have been made with.

    The file's name ends in `suffix`, or in the format's name where that is None. `together` names a file for the lines
    of several recordings, under the first line of each, which is the same.
    """

    write: Callable[[ResultT, Path], None]
    options: Mapping[str, Any] = field(default_factory=dict)
    suffix: str | None = None
    together: str | None = None


@dataclass(frozen=True)
class WarmUp:
    """What is recognised when graphs were opened, for all of them to run once: a second of noise.

    `level` is its standard deviation, of full scale 1 (0: silence). `options` are fields of the family's options that
    keep it short.
    """

    level: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family(Generic[OptionsT, ResultT]):
    """What the runtime knows of a family: one such object in `family.py` of its folder.

    Attributes
    ----------
    kind : str
        What it hears: "Speech", "Sound events".
    title : str
        What people call it.
    options : type of RecognitionOptions
        The options of one recognition; the command line is built from them.
    formats : mapping of str to Format
        Files of results by name; the first is the usual one.
    open : callable
        Returns the recogniser of an artifact; told in how many seconds the engine was opened, None if not known.
    graphs : sequence of str or None
        Those to open at once, None for all but those of `on_demand`.
    on_demand : sequence of str
        Graphs that only some options need.
    in_batches, streams : bool
        Whether the recogniser is a `BatchRecognizer`, a `StreamingRecognizer`.
    memory : callable or None
        Returns what an artifact takes beside its weights, from its manifest and the bytes of a number in it; None:
        nothing that grows with a recording. Raises pydantic's ValidationError where the manifest is another network's.
    warm_up : WarmUp
        What a server has it recognise first.

    """

    kind: str
    title: str
    options: type[OptionsT]
    formats: Mapping[str, Format[ResultT]]
    open: Callable[[Artifact, Engine, float | None], Recognizer[OptionsT, ResultT]]
    graphs: Sequence[str] | None = None
    on_demand: Sequence[str] = ()
    in_batches: bool = False
    streams: bool = False
    memory: Callable[[Content, int], WorkingMemory] | None = None
    warm_up: WarmUp = WarmUp()

    def formats_named(self, names: Sequence[str]) -> dict[str, Format[ResultT]]:
        """Return formats by name; without names the usual one.

        Raises
        ------
        InputError
            The family has no such format.

        """
        unknown = [name for name in names if name not in self.formats]
        if unknown:
            raise InputError(f"--format: expected some of {', '.join(self.formats)}, found {unknown[0]!r}")
        return {name: self.formats[name] for name in names or list(self.formats)[:1]}

    def options_for(self, typed: Mapping[str, Any], formats: Mapping[str, Format[ResultT]]) -> OptionsT:
        """Return the options of what was typed behind each flag, with those that the formats need.

        Raises
        ------
        InputError
            The family has no such flag, or a value is out of range.

        """
        needed = {name: value for format_ in formats.values() for name, value in format_.options.items()}
        return self.options.from_flags(typed, needed)
