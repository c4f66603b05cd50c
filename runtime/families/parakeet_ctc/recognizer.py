"""Opens a Parakeet-CTC artifact for transcription."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from runtime.families.parakeet_ctc.search import FrameChoice, ctc_tokens, frame_choices
from runtime.fastconformer.encoder import Encoded, FastConformer, check_finite
from runtime.fastconformer.options import FastConformerOptions
from runtime.fastconformer.recognizer import FastConformerRecognizer, Search
from runtime.fastconformer.settings import FastConformerDims, FastConformerSettings
from runtime.fastconformer.transcript import TimedToken
from runtime.fastconformer.windows import Window


class CtcEncoder(FastConformer):
    """Runs the graphs frontend and encoder; what that returns are logits [B, T, V + 1], float32."""

    dims_type, settings_type, output = FastConformerDims, FastConformerSettings, "logits"

    def choices(self, encoded: Encoded) -> list[list[FrameChoice]]:
        """Return what is likeliest in each frame of each recording.

        Raises
        ------
        EnvironmentNotFitError
            The logits are not finite.

        """
        logits = self.frames(encoded)
        check_finite(logits, "logits")
        with self.timer.measure("decode_s", on_device=False):
            return [frame_choices(row[:length]) for row, length in zip(logits, encoded.lengths, strict=True)]


@dataclass(frozen=True)
class _CtcSearch:
    """Frame by frame: nothing is carried from one window to the next but the frames themselves."""

    model: CtcEncoder

    def whole(self, encoded: Encoded, _places: Sequence[int]) -> list[list[FrameChoice]]:
        """See `Search`."""
        return self.model.choices(encoded)

    def windows(self, windows: Iterable[Window], _place: int) -> Iterator[tuple[list[FrameChoice], int]]:
        """See `Search`."""
        for window in windows:
            (choices,) = self.model.choices(self.model.encode([window.samples]))
            kept = choices[window.skipped :][: window.kept]
            yield kept, window.first + len(kept)


class CtcRecognizer(FastConformerRecognizer[FastConformerOptions, FrameChoice]):
    """Transcribes recordings with one opened artifact."""

    options_type, model_type = FastConformerOptions, CtcEncoder
    model: CtcEncoder

    def search(self, _n_recordings: int, _options: FastConformerOptions) -> Search[FrameChoice]:
        """Return the greedy search; see `FastConformerRecognizer`."""
        return _CtcSearch(self.model)

    def timed_tokens(self, found: Sequence[FrameChoice], options: FastConformerOptions) -> list[TimedToken]:
        """Return the tokens of a recording's frames; see runtime/families/parakeet_ctc/search.py."""
        return ctc_tokens(found, self.tokenizer, options)
