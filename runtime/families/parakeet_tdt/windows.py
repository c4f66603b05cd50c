"""One search that goes on from window to window of a long recording.

What it carries over a boundary is everything that it knows: the prediction net's state and output, the last token, how
far a duration reached beyond the boundary, how many tokens the frame has so far, and the hotwords' state. The scheme is
that of NeMo's `speech_to_text_streaming_infer_rnnt.py`; runtime/fastconformer/windows.py says where the boundaries are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from runtime.families.parakeet_tdt.search import Chooser, Emission
from runtime.families.parakeet_tdt.transducer import ParakeetTransducer
from runtime.fastconformer.windows import Window


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
        if window.is_silent:
            n_frames = window.kept if window.kept is not None else model.n_frames(len(window.samples)) - window.skipped
            state = replace(state, t=np.maximum(state.t - n_frames, 0))
            yield [], window.first + n_frames
            continue
        encoded = model.encode([window.samples])
        if window.kept is not None:
            encoded = model.truncate(encoded, np.array([window.skipped + window.kept], np.int64))
        state = replace(state, t=state.t + window.skipped)
        (found,), state = model.resume(encoded, state, device_steps, choosers)
        state = replace(state, t=state.t - encoded.lengths)
        shift = window.first - window.skipped
        yield [replace(emission, frame=emission.frame + shift) for emission in found], shift + int(encoded.lengths[0])
