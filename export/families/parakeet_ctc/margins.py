"""How near Parakeet-CTC's decisions on a recording are to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.ctc import ctc_runs
from runtime.decisions import SURE
from runtime.families.parakeet_ctc.recognizer import CtcEncoder, CtcRecognizer
from runtime.families.parakeet_ctc.search import FrameChoice
from runtime.fastconformer.encoder import Encoded
from runtime.fastconformer.options import FastConformerOptions
from runtime.fastconformer.transcript import TimedToken


@dataclass(frozen=True)
class _Choice(FrameChoice):
    """A choice, and by how many logits it was taken."""

    gap: float


class _Watching(CtcEncoder):
    def choices(self, encoded: Encoded) -> list[list[FrameChoice]]:
        """See `CtcEncoder`; of each frame also the gap of its two best logits."""
        gaps = [np.diff(np.partition(row, -2)[:, -2:])[:, 0].tolist() for row in self.frames(encoded)]
        chosen = super().choices(encoded)
        return [
            [_Choice(**vars(choice), gap=gap) for choice, gap in zip(row, own, strict=False)]
            for row, own in zip(chosen, gaps, strict=True)
        ]


class Listening(CtcRecognizer):
    """The recogniser that users run; it remembers the frames of one recording."""

    model_type = _Watching
    _chosen: Sequence[FrameChoice] = ()

    def timed_tokens(self, found: Sequence[FrameChoice], options: FastConformerOptions) -> list[TimedToken]:
        """See `CtcRecognizer`."""
        self._chosen = found
        return super().timed_tokens(found, options)

    def margins_of(self, segments: Sequence[Mapping[str, Any]]) -> dict[str, list[float]] | None:
        """Return the margins of a transcript's decisions (`runtime.decisions`); None where it has other tokens.

        What a token is was decided in the frames behind the first one of the token before it, up to its own first one.
        It starts with that first one of the token before it, so that the frames which decided on that count, too.
        """
        gaps = [choice.gap for choice in self._chosen if isinstance(choice, _Choice)]
        ids = np.array([choice.token for choice in self._chosen], np.int64)
        starts = [run.start for run in ctc_runs(ids, self.model.dims.n_vocab)]
        if [token for segment in segments for token in segment["tokens"]] != ids[starts].tolist():
            return None
        first = [0, *(start + 1 for start in starts)]
        own = [min(gaps[begin : start + 1]) for begin, start in zip(first, starts, strict=False)]
        times = [min(own[max(place - 1, 0) : place + 1]) for place in range(len(own))]
        found: list[float] = []
        place = 0
        for segment in segments:
            for number in range(len(segment["tokens"])):
                found += [times[place]] * (number == 0) + [own[place], times[place]]
                place += 1
            found.append(times[place - 1])
        return {"tokens": [*found, min(gaps[first[-1] :], default=SURE)]}
