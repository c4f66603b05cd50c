"""Finds the language that is spoken in a recording: from the windows with speech, as many of them as it takes.

openai/whisper and transformers take the likeliest language of the first window, and faster-whisper of the first one
that is surer than 0.5, whether anybody speaks there or not. Here a window counts by how probable speech is in it, and
the windows in which it is not (no-speech probability above 0.6) only where there are no others:

whisper-base, 32 s of zeros, white and pink noise, tones, chords or hum before Japanese: in the first window English,
Nynorsk, Romanian or Sinhala at 0.37 to 0.60 and no-speech 0.77 to 0.99; in the second Japanese at 0.98, no-speech 0.11
to 0.22.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# What openai/whisper takes for silence.
_NO_SPEECH = 0.6
# The likeliest language leads by so much, as a part of one window of certain speech: further windows are not asked.
_LEAD = 0.5
_LEAST_WEIGHT = 1e-6  # rounding makes a probability 1


@dataclass(frozen=True)
class WindowLanguages:
    """What one window tells: the probability of each language, 1 together, and that nobody speaks."""

    languages: Mapping[str, float]
    no_speech_prob: float


def spoken_language(windows: Iterable[WindowLanguages]) -> tuple[str, float]:
    """Return the code of the language spoken in a recording of at least one window, and its probability.

    The probability is the mean over the windows that count, weighted by how probable speech is in them.
    """
    speech: defaultdict[str, float] = defaultdict(float)
    silence: defaultdict[str, float] = defaultdict(float)
    for window in windows:
        counted = silence if window.no_speech_prob > _NO_SPEECH else speech
        weight = max(1 - window.no_speech_prob, _LEAST_WEIGHT)
        for language, probability in window.languages.items():
            counted[language] += weight * probability
        if counted is speech and _lead(speech) >= _LEAD:
            break
    scores = speech or silence
    best = max(scores, key=lambda language: scores[language])
    return best, scores[best] / sum(scores.values())


def _lead(scores: Mapping[str, float]) -> float:
    best, *others = heapq.nlargest(2, scores.values())
    return best - sum(others)
