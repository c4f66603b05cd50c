"""Where each token of a text is spoken: dynamic time warping over what the alignment heads look at.

The procedure is openai-whisper's (`timing.py`): softmax over the recording's frames, each frame set to mean 0 and
variance 1 over the tokens, a median over neighbouring frames, the mean of all heads, and the cheapest way through it.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from runtime.engines.base import Floats

_MEDIAN_WIDTH = 7
# Where a way comes from.
_BOTH, _ROW, _COLUMN = 0, 1, 2


def token_frames(scores: Floats, first: int, stop: int) -> NDArray[np.int64]:
    """Return the frame at which each of the rows `first` to `stop` begins.

    Parameters
    ----------
    scores : array
        Attention scores f32 [heads, tokens, frames] of all tokens and of the frames in which anything is recorded.
    first, stop : int
        Rows on the way; the others count in the normalisation alone.

    """
    total: Floats = np.zeros((stop - first, scores.shape[-1]), np.float32)
    for head in scores:  # one after the other: there may be hundreds
        weights = np.exp(head - head.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        deviation = weights.std(axis=0)
        weights -= weights.mean(axis=0)
        # Where no token looks at a frame, all are alike.
        np.divide(weights, deviation, out=weights, where=deviation > 0)
        total += _median(weights[first:stop])
    rows, frames = cheapest_path(-(total / len(scores)).astype(np.float64))
    begins: NDArray[np.int64] = frames[np.diff(rows, prepend=-1) > 0]
    return begins


def _median(values: Floats) -> Floats:
    """Return the median over neighbouring frames of values [tokens, frames], the ends mirrored."""
    side = _MEDIAN_WIDTH // 2
    if values.shape[-1] <= side:
        return values
    padded = np.pad(values, ((0, 0), (side, side)), mode="reflect")
    median: Floats = np.partition(sliding_window_view(padded, _MEDIAN_WIDTH, axis=-1), side, axis=-1)[..., side]
    return median


def cheapest_path(cost: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows and the columns of the cheapest way through `cost` [rows, columns], from corner to corner.

    It steps to the next row, the next column or both. Where two ways cost the same it is openai-whisper's choice:
    both where that is cheapest, else the row where that is cheaper than the column. Sums are rounded to float32, as
    they are there.
    """
    n_rows, n_columns = cost.shape
    total = np.full((n_rows + 1, n_columns + 1), np.inf, np.float32)
    total[0, 0] = 0
    came = np.zeros((n_rows + 1, n_columns + 1), np.int8)
    for diagonal in range(n_rows + n_columns - 1):
        row = np.arange(max(0, diagonal - n_columns + 1), min(n_rows, diagonal + 1))
        column = diagonal - row
        both, by_row, by_column = total[row, column], total[row, column + 1], total[row + 1, column]
        is_both = (both < by_row) & (both < by_column)
        is_row = (by_row < both) & (by_row < by_column)
        came[row + 1, column + 1] = np.where(is_both, _BOTH, np.where(is_row, _ROW, _COLUMN))
        before = np.where(is_both, both, np.where(is_row, by_row, by_column))
        total[row + 1, column + 1] = cost[row, column] + before
    came[0, :], came[:, 0] = _COLUMN, _ROW
    return _traced(came)


def _traced(came: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the way that was come by, from the first corner to the last."""
    row, column = came.shape[0] - 1, came.shape[1] - 1
    path = []
    while row > 0 or column > 0:
        path.append((row - 1, column - 1))
        step = came[row, column]
        row -= step != _COLUMN
        column -= step != _ROW
    rows, columns = np.array(path[::-1], np.int64).T
    return rows, columns
