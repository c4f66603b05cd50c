"""Cuts a window's tokens at their timestamps and says how far the next window moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Seconds between two timestamp tokens; also between two encoder frames, each of two mel frames.
TIME_PRECISION = 0.02
FRAMES_PER_STEP = 2
# Seconds of a mel frame.
FRAME_S = TIME_PRECISION / FRAMES_PER_STEP


class Piece(NamedTuple):
    """A segment inside its window: times in steps of 0.02 s from the window's start, and its tokens."""

    start: int
    end: int
    tokens: tuple[int, ...]


def ends_by_itself(tokens: Sequence[int], timestamps: range) -> bool:
    """Tell whether a single timestamp ends a window's tokens: no speech follows it."""
    return [token in timestamps for token in tokens[-2:]] == [False, True]


def cut_window(tokens: Sequence[int], n_frames: int, timestamps: range) -> tuple[list[Piece], int]:
    """Cut the tokens of one window into segments (sequential long form, as in openai/whisper and transformers).

    1. Two timestamps in a row end one segment and begin the next.
    2. With such a pair, what follows the last pair is dropped and the next window starts at that time, unless a single
       timestamp ends the window: then no speech follows it and the whole window is done.
    3. Without a pair, all is one segment up to the last timestamp (the window's end if there is none or it is 0), and
       the whole window is done.

    Parameters
    ----------
    tokens : sequence of int
        The window's tokens without the end token.
    n_frames : int
        Mel frames in the window, padding excluded.
    timestamps : range
        The tokens for 0.00 s, 0.02 s and so on.

    Returns
    -------
    tuple of list of Piece and int
        The segments (transformers keeps both timestamps of the last pair in its last segment, here the second is
        left out), and the number of mel frames to go on by.

    """
    begin = timestamps.start
    is_time = [token in timestamps for token in tokens]
    cuts = [i for i in range(1, len(tokens)) if is_time[i - 1] and is_time[i]]
    single_ending = ends_by_itself(tokens, timestamps)
    if not cuts:
        last = next((token - begin for token in reversed(tokens) if token in timestamps), 0)
        return [Piece(0, last or n_frames // FRAMES_PER_STEP, tuple(tokens))], n_frames
    if single_ending:
        cuts.append(len(tokens))
    pieces = [
        Piece(tokens[i] - begin, tokens[j - 1] - begin, tuple(tokens[i:j]))
        for i, j in zip([0, *cuts[:-1]], cuts, strict=True)
    ]
    return pieces, n_frames if single_ending else pieces[-1].end * FRAMES_PER_STEP
