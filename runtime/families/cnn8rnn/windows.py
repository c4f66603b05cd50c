"""Cuts a recording of any length, read in blocks, into the windows that the network is run on.

A recording of up to `window_frames` log-mel frames is one window, its exact length. A longer one has windows of that
length that overlap by two contexts, of which the scores of one context are dropped at each inner edge; the last
window ends with the recording. Every score is thus kept once. At inner edges, more samples are read than the window's
frames need, and the frames that reach a window's reflected padding dropped: only the recording's own two ends see
reflected samples, as in one run over the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from runtime.audio import SampleBuffer
from runtime.engines.base import Floats
from runtime.families.cnn8rnn.settings import Cnn8RnnFrontend, Cnn8RnnSettings


@dataclass(frozen=True)
class Window:
    """A stretch of a recording.

    Attributes
    ----------
    samples : Floats
        f32 [n], what the front-end is given.
    frames : slice
        The log-mel frames of `samples` that the body is given.
    scores : slice
        The scores of the body that are kept.
    kept_frames : slice
        The log-mel frames of `samples` that belong to the kept scores; in the last window also those behind them.
    n_frames : int
        Log-mel frames of the recording up to the end of what is kept.

    """

    samples: Floats
    frames: slice
    scores: slice
    kept_frames: slice
    n_frames: int


def cut_windows(blocks: Iterable[Floats], frontend: Cnn8RnnFrontend, settings: Cnn8RnnSettings) -> Iterator[Window]:
    """Yield a recording's windows in order.

    Parameters
    ----------
    blocks : iterable of Floats
        The recording, f32 [n] each at the front-end's rate, at least one sample in all.
    frontend : Cnn8RnnFrontend
        Its frame t covers the samples from t * hop_length - n_fft / 2 to t * hop_length + n_fft / 2.
    settings : Cnn8RnnSettings
        Length and context of a window.

    """
    hop, per_score = frontend.hop_length, settings.frames_per_score
    length, context = settings.window_frames, settings.context_frames
    halo = -(-frontend.n_fft // (2 * hop))  # frames at an edge that reach beyond it
    buffer = SampleBuffer(blocks)
    for start in count(0, length - 2 * context):
        left = min(start, halo)
        samples = buffer.between((start - left) * hop, (start + length + halo - 1) * hop)
        n_frames = 1 + len(samples) // hop - left  # from the window's start to the end of what could be read
        is_last = n_frames <= length
        first, stop = (context if start else 0), (n_frames if is_last else length - context)
        yield Window(
            samples=_padded(samples, (per_score - 1) * hop),
            frames=slice(left, left + max(per_score, min(n_frames, length))),
            scores=slice(first // per_score, None if is_last else stop // per_score),
            kept_frames=slice(left + first, left + stop),
            n_frames=start + stop,
        )
        if is_last:
            return


def _padded(samples: Floats, shortest: int) -> Floats:
    """Return the samples, with zeros behind a recording that is too short for one score."""
    return np.pad(samples, (0, max(0, shortest - len(samples))))
