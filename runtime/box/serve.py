"""Serves a folder: recognises each recording that arrives in it (`inbox` says how nothing is lost or done twice)."""

from __future__ import annotations

import errno
import json
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from runtime.artifact import Artifact
from runtime.box.inbox import MAX_INTERRUPTIONS, Inbox, Recording
from runtime.box.reading import ReaderDiedError, RecordingReader
from runtime.errors import InputError
from runtime.families import family_of
from runtime.family import Recognizer
from runtime.results import Transcript

# What keeps results from being written, whichever recording they are of.
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
_WARM_UP_S, _WARM_UP_RATE = 1, 16_000


@dataclass(frozen=True)
class Version:
    """What is to be served now: the folder of an artifact, and the version that it was installed as (None: it is not).

    Two versions never share a folder.
    """

    folder: Path
    version: str | None = None


class ServedModel:
    """A recogniser of the version that is active now.

    Parameters
    ----------
    locate : callable
        Says which version is active.
    open_version : callable
        Checks and returns its artifact.
    open_recognizer : callable
        Opens the artifact's graphs.
    formats : sequence of str
        Names of the formats of results; the first is the family's own where there are none.
    typed : mapping
        Options of recognition, for all recordings: what was typed behind each flag.
    accept_damaged : bool
        Recognise what is there of a damaged recording.

    Raises
    ------
    InputError
        The family has no such format or option.

    """

    def __init__(
        self,
        locate: Callable[[], Version],
        open_version: Callable[[Version], Artifact],
        open_recognizer: Callable[[Artifact], Recognizer[Any, Any]],
        formats: Sequence[str],
        typed: Mapping[str, Any],
        *,
        accept_damaged: bool = False,
    ) -> None:
        self._locate = locate
        self._open_version = open_version
        self._open_recognizer = open_recognizer
        self._names = tuple(formats)
        self._typed = dict(typed)
        self._accept_damaged = accept_damaged
        self._recognizer: Recognizer[Any, Any] | None = None
        self._reader = RecordingReader()
        self._version = locate()
        self._use(open_version(self._version))

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files that `write` writes."""
        return tuple(format_.suffix or name for name, format_ in self._formats.items())

    @property
    def label(self) -> str:
        """The model and its version."""
        return " ".join(filter(None, (self._model, self._version.version)))

    def open(self) -> bool:
        """Open the graphs of the active version where they are not open, and run them; return whether they were not."""
        version = self._locate()
        if version != self._version:
            # A device may not have room for two.
            self._recognizer = None
            self._version = version
            self._use(self._open_version(version))
        if self._recognizer is not None:
            return False
        recognizer = self._open_recognizer(self._artifact)
        # Options that the model refuses, and a device that fails at once, must not be laid at a recording's door. On
        # an NPU this compiles the graphs, too.
        with tempfile.TemporaryDirectory() as folder:
            noise = Path(folder) / "warm_up.wav"
            drawn = np.random.default_rng(0).standard_normal(_WARM_UP_S * _WARM_UP_RATE)
            soundfile.write(noise, self._warm_up.level * drawn, _WARM_UP_RATE)
            options = self._options.model_copy(update=dict(self._warm_up.options))
            result = recognizer.recognize(self._reader.open(noise), options, lambda *_: None)
            if isinstance(result, Transcript) and result.speech is not None:  # there was none, and no graph was run
                every_sound = options.model_copy(update={"vad": False})
                recognizer.recognize(self._reader.open(noise), every_sound, lambda *_: None)
        self._recognizer = recognizer
        return True

    def close(self) -> None:
        """End the process that reads recordings."""
        self._reader.close()

    def write(self, recording: Recording, folder: Path) -> str:
        """Recognise a recording and write its results into `folder`; return a line on how it went.

        Raises
        ------
        InputError
            It is not audio that can be read.
        ReaderDiedError
            The process that reads it ended.
        DeviceFailedError
            The device failed.

        """
        assert self._recognizer is not None, "open() comes first"
        audio = self._reader.open(recording.path, accept_damaged=self._accept_damaged)
        result: Any = self._recognizer.recognize(audio, self._options, lambda *_: None)
        result = replace(result, audio=replace(result.audio, path=recording.name))
        for (name, format_), suffix in zip(self._formats.items(), self.suffixes, strict=True):
            path = folder / f"{recording.stem}.{suffix}"
            format_.write(result, path)
            if name == "json":
                self._add_origin(path, recording)
        timings = result.timings
        speed = f"{result.audio.duration_s:.1f} s of audio in {timings['total_s']:.2f} s (RTF {timings['rtf']:.3f})"
        return ", ".join(filter(None, (speed, result.audio.remark)))

    def _use(self, artifact: Artifact) -> None:
        family = family_of(artifact)
        self._artifact = artifact
        self._model = artifact.content.model
        self._warm_up = family.warm_up
        self._formats = family.formats_named(self._names)
        self._options = family.options_for(self._typed, self._formats)

    def _add_origin(self, path: Path, recording: Recording) -> None:
        """Say in a result's JSON which bytes it belongs to and which version it is from."""
        result = json.loads(path.read_text(encoding="utf-8"))
        result["input"] = {"name": recording.name, "sha256": recording.sha256}
        result["version"] = self._version.version
        path.write_text(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def serve(
    inbox: Inbox,
    model: ServedModel,
    *,
    interval_s: float,
    once: bool,
    stop: threading.Event,
    report: Callable[[str], None],
) -> None:
    """Recognise what lies in the folder and what arrives, until `stop` is set.

    Parameters
    ----------
    inbox : Inbox
        Opened.
    model : ServedModel
        What recognises.
    interval_s : float
        Seconds between two looks into the folder.
    once : bool
        End when all that lay there at the first look and did not change until the second one is handled.
    stop : threading.Event
        Ends serving after the recording that is being recognised.
    report : callable
        Is given a line for each recording.

    Raises
    ------
    DeviceFailedError
        The device failed; the recording is tried again by the next process, `MAX_INTERRUPTIONS` times in all.

    """
    try:
        _handle_claimed(inbox, model, stop, report)
        inbox.look()
        while not stop.wait(interval_s):
            _handle_claimed(inbox, model, stop, report)
            for name in inbox.look():
                if not stop.is_set() and inbox.claim(name):
                    _handle_claimed(inbox, model, stop, report)
            if once:
                break
    finally:
        model.close()


def _handle_claimed(inbox: Inbox, model: ServedModel, stop: threading.Event, report: Callable[[str], None]) -> None:
    if model.open():
        report(f"{inbox.inbox} -> {inbox.out}, {model.label}")
    waiting = True
    while waiting:  # for another try, after all others
        waiting = False
        for recording in inbox.pending():
            if stop.is_set():
                return
            waiting |= not _handle(inbox, model, recording, report)


def _handle(inbox: Inbox, model: ServedModel, recording: Recording, report: Callable[[str], None]) -> bool:
    """Recognise a recording; False where it is to be tried again.

    A recording that ends the process each time must not keep it from all others for ever: that work on it begins is
    noted before.
    """
    name = recording.name if recording.name.isprintable() else repr(recording.name)
    lines: list[str] = []

    def failed(reason: str) -> bool:
        report(f"{name}: failed: {inbox.fail(recording, reason)}")
        return True

    if recording.problem:
        return failed(f"{recording.name}: expected a recording that can be read, found: {recording.problem}")
    if not inbox.begin(recording):
        return failed(_given_up(recording, "each time the process ended before it had a result"))
    try:
        kept = inbox.finish(recording, lambda folder: lines.append(model.write(recording, folder)))
    except InputError as error:
        return failed(str(error))
    except ReaderDiedError as error:
        if inbox.interruptions(recording) >= MAX_INTERRUPTIONS:
            return failed(_given_up(recording, str(error)))
        report(f"{name}: {error}; it is tried again")
        return False
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            inbox.forget(recording)
        elif inbox.interruptions(recording) >= MAX_INTERRUPTIONS:
            failed(_given_up(recording, str(error)))
        raise
    report(f"{name}: {lines[0]}" if kept else f"{name}: somebody writes to it, looks at it again later")
    return True


def _given_up(recording: Recording, why: str) -> str:
    return f"{recording.name}: given up after {MAX_INTERRUPTIONS} times: {why}"
