"""How near Granite Speech's decisions on a recording are to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime.artifact import Artifact
from runtime.decisions import SURE
from runtime.engines.base import Engine, Floats
from runtime.families.granite_speech.recognizer import GraniteRecognizer
from runtime.families.granite_speech.speech_lm import Decoding, Encoded, GraniteSpeechLM, greedy


class Listening(GraniteRecognizer):
    """The recogniser that users run; its language model remembers how near its choices were."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        super().__init__(artifact, engine)
        self.model = self.language_model = _Remembering(engine, artifact.content.graphs, self.dims, self.settings)


class _Remembering(GraniteSpeechLM):
    """Keeps the margins of each answer's choices, the end's included; `answers` is to be cleared by who reads it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.answers: list[list[float]] = []

    def generate(
        self, prompt: Sequence[int], encoded: Encoded, max_new_tokens: int | None = None, **how: Any
    ) -> Decoding:
        """Answer a prompt by the likeliest tokens; see `GraniteSpeechLM`."""
        margins: list[float] = []

        def remembering(logits: Floats) -> tuple[int, float]:
            second, best = np.partition(logits, -2)[-2:]
            margins.append(float(best - second))
            return greedy(logits)

        decoding = super().generate(prompt, encoded, max_new_tokens, **{**how, "choose": remembering})
        self.answers.append(margins)
        return decoding

    def margins_of(self, segments: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the margins of a transcript's decisions (`runtime.decisions`): chunks have their times by no choice.

        What is said no more counts with the chunk's end. A silent chunk was not asked about.
        """
        answers, found = iter(self.answers), []
        for segment in segments:
            own = [] if segment["finish"] == "silence" else next(answers)
            count = len(segment["tokens"])
            found += [SURE, *own[:count], min(own[count : count + 1], default=SURE)]
        return [*found, SURE]
