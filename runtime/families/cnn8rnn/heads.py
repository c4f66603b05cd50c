"""From logits to scores, on the host in float32.

Squared in float16, a score below 2.4e-4 becomes zero: a port that did so was 8.7 % off. The formulas are those of the
model's original implementation (wsntxxn, Cnn8Rnn).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engines.base import Array, Floats

# The original's clamp of framewise scores.
SMALLEST = 1e-7


def scores_from_logits(logits: Array) -> Floats:
    """Return the scores of logits, both f32 [n_scores, n_classes]: the sigmoid, between 1e-7 and 1."""
    # exp overflows f32 above 88; the sigmoid of -30 is far below the clamp.
    odds = np.exp(-np.maximum(logits.astype(np.float32, copy=False), np.float32(-30)))
    scores: Floats = np.maximum(1 / (1 + odds), np.float32(SMALLEST))
    return scores


class ClipPooling:
    """The score of a whole recording, from its 40 ms scores as they come: sum p^2 / sum p by class (linear softmax)."""

    def __init__(self, n_classes: int) -> None:
        self._squares = np.zeros(n_classes)  # f64: an hour adds up 90000 scores
        self._sums = np.zeros(n_classes)

    def push(self, scores: Floats) -> None:
        """Add scores f32 [n, n_classes]."""
        self._squares += np.square(scores, dtype=np.float64).sum(axis=0)
        self._sums += scores.sum(axis=0, dtype=np.float64)

    def result(self) -> Floats:
        """Return the recording's scores f32 [n_classes]; at least one score was added."""
        return (self._squares / self._sums).astype(np.float32)


def score_of_frames(first: int, stop: int, per_score: int, n_scores: int) -> NDArray[np.int64]:
    """Return for the 10 ms frames `first` to `stop` the index i64 [stop - first] of the score that holds for each.

    A score holds for its `per_score` frames, the last one also for those behind it: 3 s have 301 frames and 75 scores.
    """
    return np.minimum(np.arange(first, stop, dtype=np.int64) // per_score, n_scores - 1)
