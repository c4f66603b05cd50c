"""Whisper's decoding rules: which tokens may follow, how one is chosen, how a window's result is judged.

A rule changes the logits [V] f32 of one step in place, given the tokens sampled so far in this window (without the
prompt); a forbidden token gets -inf. The rules are those of openai/whisper's decoding.py and of transformers'
logits processors; the tests compare them with the latter.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from runtime.engines.base import Floats
from runtime.families.whisper.settings import WhisperSettings


class Rule(Protocol):
    """Forbids tokens for the next step."""

    def __call__(self, logits: Floats, tokens: Sequence[int], /) -> None:
        """Set the logits [V] of forbidden tokens to -inf, in place."""


class SuppressTokens:
    """Forbids `ids` everywhere."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = np.array(ids, np.int64)

    def __call__(self, logits: Floats, _tokens: Sequence[int], /) -> None:
        """Apply the rule."""
        logits[self._ids] = -np.inf


class SuppressAtBegin:
    """Forbids `ids` as the first token of a window: a blank, and ending before anything was said."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = np.array(ids, np.int64)

    def __call__(self, logits: Floats, tokens: Sequence[int], /) -> None:
        """Apply the rule."""
        if not tokens:
            logits[self._ids] = -np.inf


class TimestampRules:
    """Timestamps come first, in pairs around text, never backwards, and whenever they are likelier than text.

    1. The no-timestamps token is forbidden.
    2. After the pair that ends one segment and begins the next (or the first timestamp), text must follow; after
       text and one timestamp, a timestamp or the end.
    3. Times do not decrease, and a segment is longer than 0.
    4. The first token is a timestamp, at most `max_initial_timestamp_index` steps of 0.02 s into the window.
    5. If all timestamps together are likelier than the likeliest text token, only a timestamp may follow.
    """

    def __init__(self, settings: WhisperSettings) -> None:
        self._times = settings.timestamps
        self._no_timestamps = settings.no_timestamps
        self._eot = settings.eot
        index = settings.max_initial_timestamp_index
        self._initial_end = self._times.stop if index is None else min(self._times.start + index + 1, self._times.stop)

    def __call__(self, logits: Floats, tokens: Sequence[int], /) -> None:
        """Apply the rules in their order."""
        self.forbid(logits, tokens)
        if self.lead(logits) > 0:
            logits[: self._times.start] = -np.inf  # 5
            logits[self._times.stop :] = -np.inf

    def forbid(self, logits: Floats, tokens: Sequence[int]) -> None:
        """Apply those that do not depend on what is likely, 1 to 4."""
        begin, end = self._times.start, self._times.stop
        logits[self._no_timestamps] = -np.inf  # 1
        if not tokens:
            logits[:begin] = -np.inf  # 4
            logits[self._initial_end :] = -np.inf
            return

        last = next((token for token in reversed(tokens) if token in self._times), None)
        if tokens[-1] in self._times:
            pair_complete = len(tokens) == 1 or tokens[-2] in self._times
            if pair_complete:
                logits[begin:end] = -np.inf  # 2
                return
            logits[: self._eot] = -np.inf  # 2
            logits[end:] = -np.inf
            logits[begin : tokens[-1]] = -np.inf  # 3
        elif last is not None:
            logits[begin : last + 1] = -np.inf  # 3

    def lead(self, logits: Floats) -> float:
        """Return by how much all timestamps together are likelier than the likeliest text, if `forbid` was applied."""
        begin, end = self._times.start, self._times.stop
        # Tokens behind the timestamps are text.
        text = max(float(logits[:begin].max()), float(logits[end:].max(initial=-np.inf)))
        return log_sum_exp(logits[begin:end]) - text


def log_sum_exp(logits: Floats) -> float:
    """Return log(sum(exp(logits))) of [*] f32; -inf where nothing is allowed."""
    top = logits.max()
    if top == -np.inf:
        return -np.inf
    return float(top + np.log(np.exp(logits - top).sum()))


def choose(logits: Floats, temperature: float, generator: np.random.Generator) -> tuple[int, float]:
    """Choose a token: the likeliest at temperature 0, else a sample from softmax(logits / temperature).

    Parameters
    ----------
    logits : ndarray
        [V] f32 after the rules.
    temperature : float
        At least 0.
    generator : numpy.random.Generator
        Source of the samples.

    Returns
    -------
    tuple of int and float
        The token, and its natural log-probability under softmax(logits): without the temperature, as in
        openai/whisper.

    """
    if temperature > 0:
        weights = np.exp((logits - logits.max()) / temperature, dtype=np.float64).cumsum()
        # 1 - random() lies in (0, 1], so that the sample never falls on a forbidden token's empty interval.
        token = int(weights.searchsorted((1.0 - generator.random()) * weights[-1]))
    else:
        token = int(logits.argmax())
    return token, float(logits[token]) - log_sum_exp(logits)


def no_speech_probability(logits: Floats, token: int) -> float:
    """Return the no-speech token's probability at the start-of-transcript position, from raw logits [V] f32."""
    return float(np.exp(logits[token] - log_sum_exp(logits)))


def compression_ratio(text: str) -> float:
    """Return how many times smaller zlib makes `text` (UTF-8): high for repetition. 0 for no text.

    openai/whisper compresses the text; transformers compresses token ids, for which the threshold of 2.4 was not
    made.
    """
    data = text.encode()
    return len(data) / len(zlib.compress(data))
