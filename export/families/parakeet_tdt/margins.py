"""How near Parakeet's decisions on a recording are to others, and the hotword that makes another one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.artifact import Artifact
from runtime.decisions import SURE
from runtime.engines.base import Engine, Floats
from runtime.families.parakeet_tdt.hotwords import MAX_WEIGHT, HotwordChooser, hotword_tree
from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.parakeet_tdt.recognizer import ParakeetRecognizer
from runtime.families.parakeet_tdt.search import Chooser, Emission, HostSearch, SearchState
from runtime.families.parakeet_tdt.teacher_forcing import TeacherForcingEngine
from runtime.families.parakeet_tdt.transducer import ParakeetTransducer

# By so much a hotword wins where it makes another choice: no near-tie in any precision.
_CLEAR = 3.0


@dataclass(frozen=True)
class _Step:
    """A step of the search: its logits f32 [V + 1 + D], and the token that was chosen by them."""

    logits: Floats
    token: int


class _Remembering(ParakeetTransducer):
    """Keeps the steps of every search of one recording on the host."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        super().__init__(artifact, engine)
        self._plain = engine
        self.steps: list[_Step] = []

    def search(
        self,
        frames: Floats,
        lengths: NDArray[np.int64],
        state: SearchState,
        choosers: Sequence[Chooser | None] = (),
    ) -> tuple[list[list[Emission]], SearchState]:
        """Search frames [1, T, J]; see `ParakeetTransducer`."""
        watching = [_Watching(chooser) for chooser in choosers or [None]]
        engine = TeacherForcingEngine(self._plain)
        found = HostSearch(engine, self.dims, self.settings, self._dtype).run(frames, lengths, state, watching)
        if watching[0].chosen:
            self.steps += map(_Step, engine.rows, watching[0].chosen)
        return found


class _Watching:
    """Notes what a chooser, or the argmax, chooses."""

    def __init__(self, chooser: Chooser | None) -> None:
        self._chooser = chooser
        self.chosen: list[int] = []

    def choose(self, logits: Floats) -> int:
        """Return a token for the token logits f32 [V + 1]."""
        self.chosen.append(self._chooser.choose(logits) if self._chooser else int(logits.argmax()))
        return self.chosen[-1]

    def accept(self, token: int) -> None:
        """Take note that `token`, not a blank, was emitted."""
        if self._chooser:
            self._chooser.accept(token)


class Listening(ParakeetRecognizer):
    """The recogniser that users run; its search remembers its steps, of one recording at a time."""

    model_type = _Remembering
    model: _Remembering

    def margins_of(
        self, segments: Sequence[Mapping[str, Any]], options: ParakeetOptions
    ) -> dict[str, list[float]] | None:
        """Return the margins of a transcript's decisions (`runtime.decisions`) by softmax; None where some are gone.

        Blanks before a token, and how far they moved on, are decisions about when it comes.
        """
        blank = self.model.dims.blank
        tree = hotword_tree(options.hotwords, options.hotword_weight, self.tokenizer.encode, self.tokenizer.unknown)
        gains = _Gains(tree, blank) if tree else None
        steps = iter(self.model.steps)
        found: list[tuple[float, float]] = []
        waiting = (SURE, SURE)

        def next_token() -> tuple[int, tuple[float, float], float] | None:
            """Return the next token, the margins of what led to it, and that of its duration."""
            before = waiting
            for step in steps:
                token = gains.margin(step) if gains else _gap(step.logits[: blank + 1])
                duration = _gap(step.logits[blank + 1 :])
                if step.token == blank:
                    before = (min(before[0], token), min(before[1], duration))
                else:
                    return step.token, (min(before[0], token), before[1]), duration
            return None

        for segment in segments:
            for place, token in enumerate(segment["tokens"]):
                emitted = next_token()
                if emitted is None or emitted[0] != token:
                    return None
                found += [emitted[1]] * (3 if place == 0 else 2)  # the segment's start, the token, its time
                waiting = (SURE, emitted[2])
            found.append(waiting)
        rest = []
        for step in steps:
            if step.token != blank:
                return None
            rest.append((_gap(step.logits[: blank + 1]), _gap(step.logits[blank + 1 :])))
        found.append((min([waiting[0], *(own for own, _ in rest)]), min([waiting[1], *(own for _, own in rest)])))
        return {"tokens": [own for own, _ in found], "durations": [own for _, own in found]}

    def telling_hotwords(self) -> list[tuple[str, float]]:
        """Return single tokens as phrases with weights, of which each changes a choice, the least weight first."""
        blank = self.model.dims.blank
        found: dict[str, float] = {}
        for step in self.model.steps:
            logits = step.logits[: blank + 1]
            if step.token == blank:
                continue
            for token in np.flatnonzero(logits > logits[blank]).tolist():
                if token != step.token and self._is_phrase(token):
                    weight = float(logits[step.token] - logits[token]) + _CLEAR
                    text = self.tokenizer.texts[token]
                    found[text] = min(found.get(text, MAX_WEIGHT), weight)
        return sorted(found.items(), key=lambda pair: pair[1])

    def _is_phrase(self, token: int) -> bool:
        text = self.tokenizer.texts[token]
        return text.strip() != "" and token != self.tokenizer.unknown and self.tokenizer.encode(text) == (token,)


class _Gains(HotwordChooser):
    """Goes the way of the steps once more, and says how near each choice with hotwords was."""

    def margin(self, step: _Step) -> float:
        """Return by how many logits the step's token was chosen, and take note of it."""
        logits = step.logits[: self._blank + 1]
        if step.token == self._blank:
            return _gap(logits)
        tokens, gains = self._tree.bonuses(self._state)
        boosted = logits.copy()
        boosted[tokens] += gains
        over_blank = logits[tokens] - logits[self._blank]
        # A hotword that would win is one, or is none, by as much as it is likelier than the blank.
        winning = np.abs(over_blank[boosted[tokens] >= boosted[step.token]])
        boosted[tokens[over_blank <= 0]] = logits[tokens[over_blank <= 0]]
        self.accept(step.token)
        others = np.delete(boosted, [step.token, self._blank])
        nearest = min(boosted[step.token] - others.max(), logits.max() - logits[self._blank], *winning)
        return float(nearest)


def _gap(logits: Floats) -> float:
    """Return the gap of the two best of logits f32 [n]."""
    second, best = np.partition(logits, -2)[-2:]
    return float(best - second)
