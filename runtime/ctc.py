"""Greedy search of connectionist temporal classification (Graves et al., 2006)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engines.base import Floats


def ctc_runs(ids: NDArray[np.int64], blank: int) -> list[range]:
    """Return the frames of each token: runs of one id, without those of the blank.

    Parameters
    ----------
    ids : NDArray[np.int64]
        i64 [n_frames], the likeliest of each frame.
    blank : int
        The id that stands for none.

    """
    starts = np.flatnonzero(np.diff(ids, prepend=-1)).tolist()
    runs = map(range, starts, [*starts[1:], len(ids)])
    return [run for run in runs if ids[run.start] != blank]


def greedy_ctc(logits: Floats, blank: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the likeliest ids, i64 [n], and the probability of each, f64 [n].

    Of each run of one id, blanks dropped; an id's probability is the highest that it has in its run.

    Parameters
    ----------
    logits : Floats
        f32 [n_frames, n_ids], of the frames of the recording only.
    blank : int
        The id that stands for none.

    """
    if not len(logits):
        return np.empty(0, np.int64), np.empty(0)
    ids = logits.argmax(axis=1)
    largest = logits.max(axis=1, keepdims=True)
    probabilities = 1 / np.exp(logits.astype(np.float64) - largest).sum(axis=1)  # of `ids`, by softmax
    runs = ctc_runs(ids, blank)
    best = np.array([probabilities[run.start : run.stop].max() for run in runs], np.float64)
    return ids[[run.start for run in runs]], best
