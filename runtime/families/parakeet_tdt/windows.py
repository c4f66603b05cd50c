"""Long recordings: windows with context on both sides, and one search that goes on from window to window.

The frames of a window's left and right context are encoded for what they tell the others, and not searched. What the
search carries over a boundary is everything that it knows: the prediction net's state and output, the last token, how
far a duration reached beyond the boundary, how many tokens the frame has so far, and the hotwords' state. The scheme is
that of NeMo's `speech_to_text_streaming_infer_rnnt.py`, but for where the boundaries are: at the quietest place of the
last seconds of a chunk. A token that one window puts just behind the boundary and the next one just before it is lost,
and the reverse is heard twice: with boundaries every 10 s that happened at 12 of 541 boundaries anywhere, at 0 of 605
quiet ones (parakeet-pocket, differences to the text by full attention within a second of the boundary).

Each window is normalised by itself, as in NeMo: statistics of the whole recording need a pass of their own, and gave
more errors where the level changes (parakeet-pocket, 4 minutes at levels 25 dB apart: word error rate .027 by window,
.033 by recording) and as many elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from runtime.audio import SampleBuffer
from runtime.chunk_boundaries import PAUSE_S, quietest_boundary
from runtime.engines.base import Floats
from runtime.families.parakeet_tdt.search import Chooser, Emission
from runtime.families.parakeet_tdt.transducer import ParakeetTransducer

_BOUNDARY_S = 5.0  # a boundary lies in so many seconds before the end of a chunk, but in its second half


@dataclass(frozen=True)
class WindowSizes:
    """Encoder frames of a window: left context, the longest chunk that is searched, right context."""

    left: int
    chunk: int
    right: int

    @classmethod
    def from_seconds(cls, left_s: float, chunk_s: float, right_s: float, frame_s: float) -> WindowSizes:
        """Return the sizes in frames of `frame_s` seconds; a chunk has one at least."""
        return cls(round(left_s / frame_s), max(1, round(chunk_s / frame_s)), round(right_s / frame_s))


@dataclass(frozen=True)
class Window:
    """A stretch of a recording.

    Attributes
    ----------
    samples : Floats
        f32 [n], what is encoded.
    first : int
        Encoder frame of the recording at which the search goes on.
    skipped : int
        Frames of left context before it.
    kept : int or None
        Frames that are searched; None: to the end of the recording.

    """

    samples: Floats
    first: int
    skipped: int
    kept: int | None


def cut_windows(blocks: Iterable[Floats], frame_samples: int, frame_s: float, sizes: WindowSizes) -> Iterator[Window]:
    """Yield a recording's windows in order: every frame is searched once.

    All begin on an encoder frame, so that frames of neighbouring windows fall on each other. One of the recording's
    ends is an end of a window only where it is its own.

    Parameters
    ----------
    blocks : iterable of Floats
        The recording, f32 [n] each; what is held of it is one window and one block.
    frame_samples : int
        Samples from one encoder frame to the next, in seconds `frame_s`.
    frame_s : float
        The same in seconds.
    sizes : WindowSizes
        How long windows are.

    """
    buffer = SampleBuffer(blocks)
    first = 0
    while True:
        start, stop = max(0, first - sizes.left), first + sizes.chunk + sizes.right
        length = (stop - start) * frame_samples
        samples = buffer.between(start * frame_samples, stop * frame_samples + 1)  # one more tells whether it goes on
        skipped = first - start
        if len(samples) <= length:
            yield Window(samples, first, skipped, None)
            return
        chunk = samples[skipped * frame_samples : (skipped + sizes.chunk) * frame_samples]
        frames = chunk.reshape(sizes.chunk, frame_samples)
        kept = quietest_boundary(frames, round(_BOUNDARY_S / frame_s), round(PAUSE_S / frame_s))
        yield Window(samples[:length], first, skipped, kept)
        first += kept


def search_windows(
    model: ParakeetTransducer, windows: Iterable[Window], device_steps: int | None, chooser: Chooser | None
) -> Iterator[tuple[list[Emission], int]]:
    """Yield what is found in each window, and the recording's frame up to which it has been searched.

    Parameters
    ----------
    model : ParakeetTransducer
        The artifact's graphs.
    windows : iterable of Window
        From `cut_windows`.
    device_steps : int or None
        Search on the device in calls of so many steps; None: on the host.
    chooser : Chooser or None
        Who chooses the recording's tokens; on the host only.

    """
    state = model.start(1, device_steps)
    choosers = [chooser] if chooser else []
    for window in windows:
        if not model.n_frames(len(window.samples)):
            return  # a recording of less than a frame, or a rest of one behind the last boundary
        encoded = model.encode([window.samples])
        if window.kept is not None:
            encoded = model.truncate(encoded, np.array([window.skipped + window.kept], np.int64))
        state = replace(state, t=state.t + window.skipped)
        (found,), state = model.resume(encoded, state, device_steps, choosers)
        state = replace(state, t=state.t - encoded.lengths)
        shift = window.first - window.skipped
        yield [replace(emission, frame=emission.frame + shift) for emission in found], shift + int(encoded.lengths[0])
