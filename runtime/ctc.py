"""Greedy search of connectionist temporal classification (Graves et al., 2006)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engines.base import Floats


def greedy_ctc(logits: Floats, blank: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the likeliest ids, i64 [n], and the probability of each, f64 [n].

    The likeliest id of each frame, runs of one id taken once, then blanks dropped. An id's probability is the highest
    that it has in its run.

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
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    best, ids = np.maximum.reduceat(probabilities, starts), ids[starts]
    return ids[ids != blank], best[ids != blank]
