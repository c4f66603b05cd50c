"""Stretches of speech from probabilities, to the sample those of silero's `get_speech_timestamps` (version 6.2.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from runtime.vad.options import SpeechOptions
from runtime.vad.silero import CHUNK, SAMPLE_RATE

Span = tuple[int, int]

_PER_MS = SAMPLE_RATE // 1000
# Speech that is too long is split in pauses longer than this; silero's own default.
_SPLIT_PAUSE = 98 * _PER_MS
_HYSTERESIS, _LOWEST = 0.15, 0.01


def speech_spans(probabilities: Iterable[float], n_samples: int, options: SpeechOptions) -> tuple[Span, ...]:
    """Return first sample and the one behind the last of each stretch of speech, with the padding; they rise.

    Parameters
    ----------
    probabilities : iterable of float
        Of speech in each chunk of 512 samples.
    n_samples : int
        In the recording.
    options : SpeechOptions
        Thresholds.

    """
    finder = _Finder(options)
    for at, probability in zip(range(0, n_samples, CHUNK), probabilities, strict=True):
        finder.hear(at, probability)
    finder.end(n_samples)
    return tuple(_padded(finder.spans, n_samples, options.vad_speech_pad_ms * _PER_MS))


class _Finder:
    """Goes over the chunks; `spans` are those of speech that has ended, without padding."""

    def __init__(self, options: SpeechOptions) -> None:
        lower = options.vad_neg_threshold
        self._threshold = options.vad_threshold
        self._lower = max(self._threshold - _HYSTERESIS, _LOWEST) if lower is None else lower
        self._shortest = options.vad_min_speech_duration_ms * _PER_MS
        self._pause = options.vad_min_silence_duration_ms * _PER_MS
        padding = 2 * options.vad_speech_pad_ms * _PER_MS
        self._longest = options.vad_max_speech_duration_s * SAMPLE_RATE - CHUNK - padding
        self.spans: list[Span] = []
        self._begin(None)

    def _begin(self, at: int | None) -> None:
        """Begin speech at a sample; None: there is none."""
        self._start = at
        self._quiet: int | None = None  # since when the probability is low, within speech
        self._pauses: list[Span] = []  # of speech that may become too long

    def hear(self, at: int, probability: float) -> None:
        """Take note of the chunk that begins at sample `at`."""
        if self._start is None:
            if probability >= self._threshold:
                self._begin(at)
            return
        if probability >= self._threshold and self._quiet is not None:
            if at - self._quiet > _SPLIT_PAUSE:
                self._pauses.append((self._quiet, at))
            self._quiet = None
        if at - self._start > self._longest:
            end, after = max(self._pauses, key=_length) if self._pauses else (at, None)
            self.spans.append((self._start, end))
            self._begin(after)
        if self._start is not None and probability < self._lower:
            self._quiet = at if self._quiet is None else self._quiet
            if at - self._quiet >= self._pause:
                self.end(self._quiet)

    def end(self, at: int) -> None:
        """End speech, if there is some, at sample `at`; one that is too short is none."""
        if self._start is not None and at - self._start > self._shortest:
            self.spans.append((self._start, at))
        self._begin(None)


def _length(span: Span) -> int:
    return span[1] - span[0]


def _padded(spans: Sequence[Span], n_samples: int, pad: int) -> Iterator[Span]:
    """Yield the spans with padding; two of them share a pause that is too short for both."""
    shares = [min(pad, (after[0] - before[1]) // 2) for before, after in pairwise(spans)]
    for (start, end), before, after in zip(spans, [pad, *shares], [*shares, pad], strict=False):
        yield max(0, start - before), min(n_samples, end + after)
