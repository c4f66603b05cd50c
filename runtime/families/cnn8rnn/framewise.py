"""Keeps a recording's framewise scores on disk and its spectrogram pooled, so that memory does not grow with it."""

from __future__ import annotations

import tempfile

import numpy as np

from runtime.engines.base import Floats
from runtime.errors import EnvironmentNotFitError
from runtime.families.cnn8rnn.settings import Cnn8RnnFrontend, Cnn8RnnSettings
from runtime.results import FramewiseScores, Spectrogram

# Twice the pixels that a heat map has room for: halved, there is still one a pixel.
MAX_COLUMNS = 2400


class FramewiseWriter:
    """Collects scores and log-mel frames as they come."""

    def __init__(self, labels: tuple[str, ...], frontend: Cnn8RnnFrontend, settings: Cnn8RnnSettings) -> None:
        self._labels = labels
        self._frontend = frontend
        self._per_score = settings.frames_per_score
        # It has no name: the system takes it back when the array that maps it is gone, whatever ends the process.
        self._file = tempfile.TemporaryFile(prefix="atlasport-scores-")  # noqa: SIM115 - it outlives this function
        self._n_scores = 0
        self._spectrogram = _PooledFrames(frontend.n_mels)

    def push(self, scores: Floats, logmel: Floats) -> None:
        """Add scores f32 [n, n_classes] and the log-mel frames f32 [n_mels, n_frames] that they cover.

        Raises
        ------
        EnvironmentNotFitError
            The disk is full.

        """
        try:
            self._file.write(np.ascontiguousarray(scores, np.float32).data)
        except OSError as error:
            raise EnvironmentNotFitError(
                f"{tempfile.gettempdir()}: cannot keep framewise scores there: {error.strerror}; name a folder with "
                "more room in TMPDIR, or restrict the labels"
            ) from error
        self._n_scores += len(scores)
        self._spectrogram.push(logmel.T)

    def result(self, n_frames: int, start_s: float) -> FramewiseScores:
        """Return what was collected of a recording, or a part that begins at `start_s`, of `n_frames` frames."""
        self._file.flush()
        return FramewiseScores(
            scores=np.memmap(self._file, np.float32, "r", shape=(self._n_scores, len(self._labels))),
            labels=self._labels,
            frames_per_score=self._per_score,
            frame_s=self._frontend.hop_length / self._frontend.sample_rate,
            n_frames=n_frames,
            start_s=start_s,
            spectrogram=Spectrogram(*self._spectrogram.result(), self._frontend.f_min, self._frontend.f_max),
        )


class _PooledFrames:
    """Means of neighbouring frames: of one, and each time that there are too many, of twice as many as before."""

    def __init__(self, n_mels: int) -> None:
        self._columns: Floats = np.zeros((0, n_mels), np.float32)
        self._rest: Floats = np.zeros((0, n_mels), np.float32)  # frames that do not fill a column yet
        self._factor = 1

    def push(self, frames: Floats) -> None:
        """Add frames f32 [n, n_mels]."""
        frames = np.concatenate([self._rest, frames])
        whole = len(frames) - len(frames) % self._factor
        self._rest = frames[whole:].copy()
        self._columns = np.concatenate([self._columns, _means(frames[:whole], self._factor)])
        while len(self._columns) > MAX_COLUMNS:
            if len(self._columns) % 2:  # the last column has no neighbour yet: its frames wait again
                self._rest = np.concatenate([np.repeat(self._columns[-1:], self._factor, axis=0), self._rest])
                self._columns = self._columns[:-1]
            self._columns = _means(self._columns, 2)
            self._factor *= 2

    def result(self) -> tuple[Floats, int]:
        """Return the columns f32 [n, n_mels] and how many frames each stands for."""
        rest = self._rest.mean(axis=0, keepdims=True) if len(self._rest) else self._rest
        return np.concatenate([self._columns, rest]), self._factor


def _means(frames: Floats, count: int) -> Floats:
    """Return the mean f32 [n / count, n_mels] of each `count` rows."""
    means: Floats = frames.reshape(-1, count, frames.shape[1]).mean(axis=1, dtype=np.float32)
    return means
