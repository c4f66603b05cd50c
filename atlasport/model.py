"""A model opened from Python: `atlasport.open` returns one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

from numpy.typing import NDArray
from typing_extensions import Self

from runtime.errors import InputError
from runtime.family import Family, Progress, Recognizer, StreamingRecognizer
from runtime.options import RecognitionOptions
from runtime.results import Result, Segment, SoundEvents, Transcript

if TYPE_CHECKING:
    from runtime.artifact import Artifact
    from runtime.audio import Audio
    from runtime.manifest import Variant

Recording: TypeAlias = "str | Path | bytes | IO[bytes] | NDArray[Any] | Audio"


class Model:
    """A model that recognises speech or sound events, opened on one device.

    Use it in a `with` block, or call `close`, to give the device's memory back at a known moment.

    Attributes
    ----------
    name, variant : str
        The artifact's model and precision.
    kind : str
        "Speech" or "Sound events".
    engine, device : str
        What runs the graphs, and where.
    recognizer : Recognizer
        The family's own object, for what is not here.

    """

    def __init__(self, recognizer: Recognizer[Any, Any], family: Family[Any, Any]) -> None:
        content = recognizer.content
        self.name, self.variant, self.kind = content.model, content.variant, family.kind
        self.engine, self.device = recognizer.engine.name, recognizer.engine.device
        self.recognizer = recognizer
        self._family = family
        self._closed = False

    def __repr__(self) -> str:
        """Name the model and where it runs."""
        return f"<atlasport.Model {self.name} {self.variant}, {self.engine} on {self.device}>"

    def __enter__(self) -> Self:
        """Return the model itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the model."""
        self.close()

    def close(self) -> None:
        """Release the graphs and the device; may be called again."""
        if not self._closed:
            self._closed = True
            self.recognizer.engine.close()

    def transcribe(
        self,
        recording: Recording,
        *,
        rate: int | None = None,
        accept_damaged: bool = False,
        on_progress: Progress | None = None,
        on_text: Callable[[str], object] | None = None,
        **options: Any,
    ) -> Transcript:
        """Return what is said in a recording of any length.

        Parameters
        ----------
        recording : str, Path, bytes, binary file object, array or Audio
            An array has shape [n] or [n, channels]; floats lie within -1 to 1, integers within the range of their type.
        rate : int, optional
            Sample rate of an array in Hz.
        accept_damaged : bool
            Read what is there of a damaged file; the result's `audio.remark` says what is missing.
        on_progress : callable, optional
            Called with seconds done and seconds in all.
        on_text : callable, optional
            Given the text piece by piece as it comes, where the family can.
        **options
            The family's; `help(model.transcribe)` lists those of an opened model.

        Returns
        -------
        Transcript
            `text`, `segments` with times in seconds, `language`, `timings`; `to_json()` is what `run --json` prints.

        Raises
        ------
        InputError
            It is no recording, damaged, or an option that the model does not have.
        EnvironmentNotFitError
            The device gave numbers that are not finite; DeviceFailedError: it failed.

        """
        self._require("Speech", "transcribe", "detect_events")
        audio = _audio_of(recording, rate, accept_damaged=accept_damaged)
        return cast("Transcript", self._recognize(audio, options, on_progress, on_text))

    def segments(
        self, recording: Recording, *, rate: int | None = None, accept_damaged: bool = False, **options: Any
    ) -> Iterator[Segment]:
        """Return the segments of a recording one by one, each as soon as it is known; Parakeet's are known at the end.

        Parameters, options and errors are those of `transcribe`. A model does one thing at a time: other calls wait
        until the last segment is known, or the iterator is closed.
        """
        self._require("Speech", "segments", "detect_events")
        audio, chosen = _audio_of(recording, rate, accept_damaged=accept_damaged), self.recognizer.options(**options)
        recognize = cast("Callable[..., Transcript]", self.recognizer.recognize)
        return _as_they_come(lambda on_segment: recognize(audio, chosen, on_segment=on_segment))

    def detect_language(
        self, recording: Recording, *, rate: int | None = None, accept_damaged: bool = False, **options: Any
    ) -> tuple[str, float]:
        """Return the code of the language that is spoken, "" where nobody speaks, and its probability, 0 to 1.

        Parameters, options and errors are those of `transcribe`; a model that knows one language only is an InputError.
        """
        self._require("Speech", "detect_language", "detect_events")
        audio = _audio_of(recording, rate, accept_damaged=accept_damaged)
        return self.recognizer.detect_language(audio, self.recognizer.options(**options))

    def detect_events(
        self,
        recording: Recording,
        *,
        rate: int | None = None,
        accept_damaged: bool = False,
        on_progress: Progress | None = None,
        **options: Any,
    ) -> SoundEvents:
        """Return the sounds of a recording of any length.

        Parameters and errors are those of `transcribe`; `help(model.detect_events)` lists the options of an opened
        model.

        Returns
        -------
        SoundEvents
            `events` with label, onset, offset (seconds) and score, `tags` of the whole recording.

        """
        self._require("Sound events", "detect_events", "transcribe")
        audio = _audio_of(recording, rate, accept_damaged=accept_damaged)
        return cast("SoundEvents", self._recognize(audio, options, on_progress))

    def _require(self, kind: str, called: str, other: str) -> None:
        if self._closed:
            raise InputError(f"{called}: expected an open model, found {self.name} closed; open it again")
        if self.kind != kind:
            raise InputError(f"{called}: expected a model of {kind.lower()}, found {self.name}; use {other}")

    def _recognize(
        self,
        audio: Audio,
        options: dict[str, Any],
        on_progress: Progress | None,
        on_text: Callable[[str], object] | None = None,
    ) -> Result:
        chosen: RecognitionOptions = self.recognizer.options(**options)
        if on_text is None:
            return cast("Result", self.recognizer.recognize(audio, chosen, on_progress))
        if not self._family.streams:
            raise InputError(f"on_text: {self.name} gives its text at the end only; leave it out")
        streaming = cast("StreamingRecognizer[Any, Result]", self.recognizer)
        return streaming.recognize(audio, chosen, on_progress, on_text)


class _ClosedError(Exception):
    """Nobody takes segments any more."""


def _as_they_come(recognize: Callable[[Callable[[Segment], None]], object]) -> Iterator[Segment]:
    """Yield what a recognition in a thread of its own finds; closing the iterator ends it at its next segment."""
    found: SimpleQueue[Segment | None] = SimpleQueue()
    closed = Event()

    def take(segment: Segment) -> None:
        if closed.is_set():
            raise _ClosedError
        found.put(segment)

    with ThreadPoolExecutor(1) as pool:
        recognition = pool.submit(recognize, take)
        recognition.add_done_callback(lambda _: found.put(None))
        try:
            while (segment := found.get()) is not None:
                yield segment
        finally:
            closed.set()
        recognition.result()


def find_model(name: str, root: Path, variant: Variant) -> tuple[Artifact, str]:
    """Return the artifact that a user named, or the active version of a model on a box, and its device by default."""
    from runtime.artifact import find_artifact, open_artifact
    from runtime.box.requirements import default_device
    from runtime.box.root import Box
    from runtime.box.versions import open_active

    if not Box(root).exists():
        return open_artifact(find_artifact(name, root, variant), to_run=True), "cpu"
    artifact, manifest = open_active(root, name)
    return artifact, default_device(manifest.profile)


def _audio_of(recording: Recording, rate: int | None, *, accept_damaged: bool) -> Audio:
    from runtime.audio import Audio, open_audio

    if isinstance(recording, Audio):
        return recording
    return open_audio(recording, rate=rate, accept_damaged=accept_damaged)


def model_of(recognizer: Recognizer[Any, Any], family: Family[Any, Any]) -> Model:
    """Return an opened recogniser as a model whose methods explain the family's options."""
    explained = {
        method.__name__: _explained(method, family.options) for method in (Model.transcribe, Model.detect_events)
    }
    made: type[Model] = type("Model", (Model,), {"__doc__": Model.__doc__, "__module__": __name__, **explained})
    return made(recognizer, family)


def _explained(method: Callable[..., Any], options: type[RecognitionOptions]) -> Callable[..., Any]:
    """Return the method with an options model's fields in its signature, and their text in its docstring."""

    @wraps(method)
    def explained(*arguments: Any, **named: Any) -> Any:
        return method(*arguments, **named)

    signature = inspect.signature(method)
    own = [part for part in signature.parameters.values() if part.kind is not part.VAR_KEYWORD]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.get_default(call_default_factory=True))
        for name, field in options.model_fields.items()
    ]
    explained.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    known = [base for base in options.__mro__ if issubclass(base, RecognitionOptions)]
    told = [inspect.cleandoc(base.__doc__ or "") for base in known]
    texts = [text.partition("Attributes\n----------\n")[2].strip() for text in told]
    explained.__doc__ = "\n\n".join(
        [inspect.cleandoc(method.__doc__ or ""), "Options\n-------", "\n".join(filter(None, texts))]
    )
    return explained
