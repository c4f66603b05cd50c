"""A recording's features, window by window: from memory where it fits one window, streamed from the file where not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Protocol

import numpy as np

from runtime.engines.base import Floats
from runtime.families.whisper.logmel import LogMelStream, normalise, pad_window
from runtime.families.whisper.settings import WhisperFrontend
from runtime.silence import is_silent


class Features(Protocol):
    """Features [n_mels, n_frames] of a recording of `duration_s` seconds, padding excluded.

    `is_silent` says that the recording is digital silence.
    """

    is_long: bool
    is_silent: bool
    n_frames: int
    duration_s: float

    def window(self, seek: int) -> Floats:
        """Return the window [n_mels, frames of a window] f32 that begins at frame `seek`; `seek` never falls."""

    def later_windows(self) -> Iterator[Floats]:
        """Yield the windows behind the first, one after the other, in a reading of its own."""


class ShortFeatures:
    """A recording that fits one window: zero features behind its end, as openai/whisper has them.

    transformers pads the samples: their features lie at the floor of the recording's range, and Whisper hears words in
    them ("you", "Thank you") where nobody speaks.
    """

    is_long = False

    def __init__(self, audio: Floats, frontend: WhisperFrontend, run_frontend: Callable[[Floats], Floats]) -> None:
        mel = run_frontend(pad_window(audio, frontend)[: frontend.n_samples])
        self.n_frames = min(len(audio) // frontend.hop_length, mel.shape[1])
        self._mel = np.pad(mel[:, : self.n_frames], ((0, 0), (0, mel.shape[1] - self.n_frames)))
        self.duration_s = len(audio) / frontend.sample_rate
        self.is_silent = is_silent(audio)

    def window(self, seek: int) -> Floats:
        """Return the window that begins at frame `seek`."""
        return np.pad(self._mel[:, seek:], ((0, 0), (0, seek)))

    def later_windows(self) -> Iterator[Floats]:
        """Yield nothing: all is in the first."""
        yield from ()


class StreamedFeatures:
    """A longer recording, read twice: once for the maximum that the features refer to, once in moving windows."""

    is_long = True

    def __init__(self, read: Callable[[], Iterable[Floats]], first_pass: Iterable[Floats], fe: WhisperFrontend) -> None:
        n_samples, maximum = 0, -np.inf
        self.is_silent = True

        def counted() -> Iterator[Floats]:
            nonlocal n_samples
            for block in first_pass:
                n_samples += len(block)
                self.is_silent = self.is_silent and is_silent(block)
                yield block

        for frames in LogMelStream(fe).frames(counted()):
            maximum = max(maximum, float(frames.max()))
        self.n_frames = n_samples // fe.hop_length
        self.duration_s = n_samples / fe.sample_rate
        self._length = fe.n_samples // fe.hop_length

        def opened() -> _MovingWindow:
            frames = (normalise(frames, maximum) for frames in LogMelStream(fe).frames(read()))
            return _MovingWindow(frames, self._length, fe.n_mels)

        self._open = opened
        self._moving = opened()

    def window(self, seek: int) -> Floats:
        """Return the window that begins at frame `seek`, zero features behind the recording's end."""
        return self._moving.at(seek)

    def later_windows(self) -> Iterator[Floats]:
        """Yield the windows behind the first; the recording is read once more, as far as they are taken."""
        moving = self._open()
        for seek in range(self._length, self.n_frames, self._length):
            yield moving.at(seek)


class _MovingWindow:
    """A stretch of `length` frames of blocks [n_mels, k] f32, which only moves forward."""

    def __init__(self, blocks: Iterator[Floats], length: int, n_mels: int) -> None:
        self._blocks = blocks
        self._length = length
        self._buffer: Floats = np.zeros((n_mels, 0), np.float32)
        self._start = 0

    def at(self, seek: int) -> Floats:
        """Return the frames from `seek` on, zeros behind the last."""
        while (behind := self._start + self._buffer.shape[1]) < seek and (
            block := next(self._blocks, None)
        ) is not None:
            self._buffer, self._start = block, behind
        kept = [self._buffer[:, seek - self._start :]]
        missing = self._length - kept[0].shape[1]
        while missing > 0 and (block := next(self._blocks, None)) is not None:
            kept.append(block)
            missing -= block.shape[1]
        self._buffer = np.concatenate(kept, axis=1)
        self._start = seek
        return np.pad(self._buffer[:, : self._length], ((0, 0), (0, max(0, missing))))


def open_features(
    read: Callable[[], Iterable[Floats]], frontend: WhisperFrontend, run_frontend: Callable[[Floats], Floats]
) -> Features:
    """Return the features of a recording of at least one sample.

    Parameters
    ----------
    read : callable
        Begins to read the recording: blocks [*] f32 at the front-end's rate. Called twice for a long recording.
    frontend : WhisperFrontend
        The model's front-end.
    run_frontend : callable
        Features [n_mels, frames] f32 of one window of samples [n_samples] f32.

    """
    blocks = iter(read())
    head: list[Floats] = []
    count = 0
    # transformers takes the short form for as many frames as a window has, and frames are counted rounding down.
    while count < frontend.n_samples + frontend.hop_length and (block := next(blocks, None)) is not None:
        head.append(block)
        count += len(block)
    if count < frontend.n_samples + frontend.hop_length:
        return ShortFeatures(np.concatenate(head), frontend, run_frontend)
    return StreamedFeatures(read, chain(head, blocks), frontend)
