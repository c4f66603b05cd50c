"""Finds events in scores that come in pieces: median filter, double threshold, gap merging, minimum duration.

What it holds does not grow with the recording, but for the events found. Where pieces end makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from runtime.engines.base import Floats


@dataclass(frozen=True)
class Run:
    """Scores `start` to `stop` (exclusive) of class `place`; `score` is the highest of them, median-filtered."""

    place: int
    start: int
    stop: int
    score: float

    def merged(self, later: Run) -> Run:
        """Return the run from this one's start to the later one's stop."""
        return replace(self, stop=later.stop, score=max(self.score, later.score))


class EventDetector:
    """Streaming detector of events of several classes; all lengths are numbers of scores.

    Parameters
    ----------
    high, low : Floats
        f32 [n_classes]. An event is a run of scores above `low`, one of them above `high`.
    median : int
        Odd length of the median filter that comes first; at both ends of the recording the outermost score counts as
        repeated.
    longest_gap : int
        Events of a class with at most so many scores between them are merged.
    shortest : int
        Events of fewer scores are dropped, after merging.

    """

    def __init__(self, high: Floats, low: Floats, median: int = 1, longest_gap: int = 0, shortest: int = 1) -> None:
        self._high, self._low = high, low
        self._median = median
        self._longest_gap, self._shortest = longest_gap, shortest
        self._rows: Floats | None = None  # [median - 1, n_classes], the filter's rows before the next score
        self._done = 0
        self._open: dict[int, Run] = {}  # runs above low that reach the last score seen
        self._pending: dict[int, Run] = {}  # events that the next one may be merged with
        self._events: list[Run] = []

    def push(self, scores: Floats) -> None:
        """Take the next scores f32 [n, n_classes]."""
        if not len(scores):
            return
        if self._rows is None:
            self._rows = np.repeat(scores[:1], self._median // 2, axis=0)
        self._filter(np.concatenate([self._rows, scores]))

    def finish(self) -> tuple[Run, ...]:
        """Return the events by start, then class; at least one score was pushed."""
        if self._rows is not None and self._median > 1:
            self._filter(np.concatenate([self._rows, np.repeat(self._rows[-1:], self._median // 2, axis=0)]))
        for run in self._open.values():
            self._close(run)
        for event in self._pending.values():
            self._emit(event)
        return tuple(sorted(self._events, key=lambda event: (event.start, event.place)))

    def _filter(self, rows: Floats) -> None:
        """Find the runs in the rows whose neighbours are all there, and keep the others for the next call."""
        count = len(rows) - self._median + 1
        if count > 0:
            # A median is above low only where some score is.
            for place in np.flatnonzero(rows.max(axis=0) > self._low).tolist():
                for run in self._runs(place, _medians(rows[:, place], self._median)):
                    self._extend(run)
            self._done += count
        self._rows = rows[max(0, count) :]

    def _runs(self, place: int, scores: Floats) -> Iterator[Run]:
        """Yield the runs above low in filtered scores f32 [n] that begin at score `self._done`."""
        edges = np.diff(scores > self._low[place], prepend=False, append=False).nonzero()[0]
        for start, stop in edges.reshape(-1, 2).tolist():
            yield Run(place, self._done + start, self._done + stop, float(scores[start:stop].max()))

    def _extend(self, run: Run) -> None:
        """Add a run to the one that it goes on from; if there is none, begin a new one."""
        before = self._open.get(run.place)
        if before is None or before.stop < run.start:
            if before is not None:
                self._close(before)
            self._open[run.place] = run
        else:
            self._open[run.place] = before.merged(run)

    def _close(self, run: Run) -> None:
        """Take a whole run: it is an event if it gets above high."""
        if run.score <= self._high[run.place]:
            return
        before = self._pending.get(run.place)
        if before is not None and run.start - before.stop <= self._longest_gap:
            self._pending[run.place] = before.merged(run)
        else:
            if before is not None:
                self._emit(before)
            self._pending[run.place] = run

    def _emit(self, event: Run) -> None:
        if event.stop - event.start >= self._shortest:
            self._events.append(event)


def _medians(scores: Floats, length: int) -> Floats:
    """Return the median f32 [n - length + 1] of every `length` neighbours of scores f32 [n]; the length is odd."""
    if length == 1:
        return scores
    medians: Floats = np.partition(sliding_window_view(scores, length), length // 2, axis=-1)[:, length // 2]
    return medians


def scores_within(seconds: float, step_s: float) -> int:
    """Return how many whole scores last at most `seconds`."""
    return int(np.floor(seconds / step_s + 1e-6))


def scores_lasting(seconds: float, step_s: float) -> int:
    """Return how many whole scores last at least `seconds`."""
    return int(np.ceil(seconds / step_s - 1e-6))
