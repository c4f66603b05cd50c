"""How near Whisper's decisions on a recording are to others: tokens, and the timestamps that segments' times are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.artifact import Artifact
from runtime.decisions import SURE
from runtime.engines.base import Engine, Floats
from runtime.families.whisper.encoder_decoder import Decoding, Prompted, WhisperEncoderDecoder, Window
from runtime.families.whisper.recognizer import WhisperRecognizer
from runtime.families.whisper.rules import Rule, TimestampRules
from runtime.families.whisper.segments import cut_window
from runtime.families.whisper.settings import WhisperDims, WhisperSettings
from runtime.manifest import Graph


class Listening(WhisperRecognizer):
    """The recogniser that users run; its decoder remembers how near its choices were."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        super().__init__(artifact, engine)
        self._model = self.decoder = _Remembering(engine, artifact.content.graphs, self.dims, self.settings)


@dataclass(frozen=True)
class _Window:
    """A window's tokens with the margins of their choices, and of the end's where that was chosen."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    timestamps: bool


class _Remembering(WhisperEncoderDecoder):
    """Keeps of each window its tokens, and the margins of their choices and of the end's.

    Of a window that was tried at several temperatures these are the last try's: the others were refused.
    """

    def __init__(
        self, engine: Engine, graphs: Mapping[str, Graph], dims: WhisperDims, settings: WhisperSettings
    ) -> None:
        super().__init__(engine, graphs, dims, settings)
        self._windows: list[_Window] = []

    def prompted(self, window: Window, prompt: Sequence[int]) -> Prompted:
        """Begin a window; see `WhisperEncoderDecoder`."""
        self._windows.append(_Window((), (), timestamps=False))
        return super().prompted(window, prompt)

    def decode(
        self,
        prompted: Prompted,
        rules: Sequence[Rule],
        choose: Callable[[Floats], tuple[int, float]],
        max_new_tokens: int | None = None,
    ) -> Decoding:
        """Decode one window; see `WhisperEncoderDecoder`."""
        margins: list[float] = []
        leads = [SURE]  # of timestamps over text, or text over them: which of the two is a choice of its own

        def watched(rule: TimestampRules) -> Rule:
            def remembering(logits: Floats, tokens: Sequence[int]) -> None:
                rule.forbid(logits, tokens)
                leads[0] = _finite(abs(rule.lead(logits)))
                rule(logits, tokens)

            return remembering

        def remembering(logits: Floats) -> tuple[int, float]:
            second, best = np.partition(logits, -2)[-2:]
            margins.append(min(_finite(float(best - second)), leads[0]))  # the rules may leave one candidate
            return choose(logits)

        timed = [watched(rule) if isinstance(rule, TimestampRules) else rule for rule in rules]
        decoding = super().decode(prompted, timed, remembering, max_new_tokens)
        self._windows[-1] = _Window(decoding.tokens, tuple(margins), timed != list(rules))
        return decoding

    def margins_of(self, segments: Sequence[Sequence[int]]) -> tuple[float, ...] | None:
        """Return the margins of a transcript's decisions, of the tokens of its segments (`runtime.decisions`).

        What was chosen and is in no segment, such as the end of a window or text that its last times cut off, counts
        with the next decision, where it would show. None where a segment is not of these windows.
        """
        left = list(map(tuple, segments))
        found: list[float] = []
        waiting = SURE
        for window in self._windows:
            place = 0
            for tokens in self._pieces(window):
                stop = place + len(tokens)
                if left and tokens == left[0]:
                    left.pop(0)
                    # Text that no timestamp ends is ended by the window's end.
                    ended = tokens[-1] in self._settings.special or stop < len(window.tokens)
                    margins = window.margins[place : stop if ended else None]
                    found += self._of_piece(tokens, margins, waiting)
                    waiting = SURE
                else:
                    waiting = min([waiting, *window.margins[place:stop]])
                place = stop
            waiting = min([waiting, *window.margins[place:]])
        return None if left else (*found, waiting)

    def _pieces(self, window: _Window) -> list[tuple[int, ...]]:
        """Return the tokens of a window's segments."""
        if not window.timestamps:
            return [window.tokens]
        return [piece.tokens for piece in cut_window(window.tokens, 0, self._settings.timestamps)[0]]

    def _of_piece(self, tokens: Sequence[int], margins: Sequence[float], waiting: float) -> list[float]:
        """Return the margins of a segment's start, tokens and end; `waiting` counts with the first of them."""
        special = self._settings.special
        found = [] if tokens[0] in special else [SURE]  # it starts where the window does
        for place, (token, margin) in enumerate(zip(tokens, margins, strict=False)):
            waiting = min(waiting, margin)
            if place == 0 or token not in special:
                found.append(waiting)
                waiting = SURE
        return [*found, min([waiting, *margins[len(tokens) :]])]


def _finite(margin: float) -> float:
    """Return a margin as a number: where nothing else was allowed it is none."""
    return margin if np.isfinite(margin) else SURE
