"""Times of words, as openai-whisper finds them (`timing.py`).

1. A word begins where its first token does on the cheapest way through the alignment heads (`dtw`), and ends where the
   next word begins. Its probability is the mean of its tokens', among tokens of text.
2. At the ends of sentences, and behind pauses, a word takes twice the median at most.
3. Punctuation marks belong to the word beside them (`word_splitting`).
4. A segment begins and ends with its words, but where it says itself that the first or the last one is shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from runtime.families.whisper.dtw import token_frames
from runtime.families.whisper.encoder_decoder import WhisperEncoderDecoder, Window
from runtime.families.whisper.segments import FRAME_S, FRAMES_PER_STEP, TIME_PRECISION
from runtime.families.whisper.settings import WhisperSettings
from runtime.families.whisper.tokenizer import WhisperTokenizer
from runtime.families.whisper.word_splitting import TimedWord, merge_punctuation, split_words

_SENTENCE_ENDS = ".\u3002!\uff01?\uff1f"
_LONGEST_MEDIAN_S = 0.7
# A pause is longer than so many median words.
_PAUSE = 4
# A segment's own time counts where a word reaches so far beyond it.
_SLACK_S = 0.5


@dataclass
class Spoken:
    """A segment that may still move; seconds from the features' start. `tokens` have timestamps among them."""

    start: float
    end: float
    tokens: tuple[int, ...]
    words: list[TimedWord] = field(default_factory=list)


@dataclass(frozen=True)
class Stretch:
    """Mel frames of a window: it begins at `seek`, has `n_frames` before its padding, and the recording has `total`."""

    seek: int
    n_frames: int
    total: int
    length: int

    @property
    def start(self) -> float:
        """Where it begins, in seconds."""
        return self.seek * FRAME_S

    @property
    def recorded(self) -> float:
        """Where what is recorded in it ends, in seconds."""
        return (self.seek + self.n_frames) * FRAME_S

    @property
    def end(self) -> float:
        """Where its padding ends, in seconds."""
        return (self.seek + self.length) * FRAME_S

    def frames_to(self, time: float) -> int:
        """Return how many frames it is from its beginning to a time in seconds, at least 0."""
        return max(0, round(time / FRAME_S) - self.seek)


def end_of(segments: Sequence[Spoken]) -> float:
    """Return where the last word of segments ends, or the last segment where there is no word."""
    words = (word.end for segment in reversed(segments) for word in reversed(segment.words))
    return next(words, segments[-1].end)


class WordTimes:
    """Finds the words of a window's segments, and when they are spoken."""

    def __init__(self, model: WhisperEncoderDecoder, tokenizer: WhisperTokenizer, settings: WhisperSettings) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings

    def add(
        self,
        segments: Sequence[Spoken],
        window: Window,
        stretch: Stretch,
        *,
        start: Sequence[int],
        language: str,
        last_speech: float,
    ) -> None:
        """Add words to the segments of a window, whose times then are those of their words.

        Parameters
        ----------
        segments : sequence of Spoken
            In order; they are changed.
        window : Window
            What they were decoded from.
        stretch : Stretch
            Where that lies.
        start : sequence of int
            Its prompt from the start-of-transcript token on, without a token that forbids times.
        language : str
            Code of what is spoken.
        last_speech : float
            Where the words before the window end, in seconds.

        """
        texts = [[token for token in segment.tokens if self._tokenizer.is_text(token)] for segment in segments]
        words = self._aligned([token for text in texts for token in text], window, stretch, start, language)
        place_words(words, segments, [len(text) for text in texts], stretch.start, last_speech)

    def _aligned(
        self, text: Sequence[int], window: Window, stretch: Stretch, start: Sequence[int], language: str
    ) -> list[TimedWord]:
        """Return the words of a text, times in seconds from the window's start."""
        if not text:
            return []
        tokens = [*start, self._settings.no_timestamps, *text, self._settings.eot]
        scores, likely = self._model.align(window, tokens)
        n_frames = max(1, stretch.n_frames // FRAMES_PER_STEP)
        first, stop = len(start), len(start) + 1 + len(text)
        begins = token_frames(scores[..., :n_frames], first, stop) * TIME_PRECISION
        probabilities = likely[first : stop - 1]
        split = split_words(text, self._tokenizer.decode, language)
        bounds = pairwise(np.cumsum([0, *(len(part) for _, part in split)]).tolist())
        return [
            TimedWord(word, part, float(begins[at]), float(begins[end]), float(probabilities[at:end].mean()))
            for (word, part), (at, end) in zip(split, bounds, strict=True)
        ]


def place_words(
    words: Sequence[TimedWord], segments: Sequence[Spoken], lengths: Sequence[int], start: float, last_speech: float
) -> None:
    """Give a window's words to its segments, and put right what takes too long.

    Parameters
    ----------
    words : sequence of TimedWord
        All of the window, times in seconds from its start; changed.
    segments : sequence of Spoken
        In order; changed.
    lengths : sequence of int
        How many of the words' tokens each segment has.
    start, last_speech : float
        Where the window begins, and where the words before it end; in seconds.

    """
    durations = [word.end - word.start for word in words if word.end != word.start]
    median = min(_LONGEST_MEDIAN_S, float(np.median(durations))) if durations else 0.0
    if durations:
        _shorten_at_sentence_ends(words, 2 * median)
    merge_punctuation(words)
    place = 0
    for segment, length in zip(segments, lengths, strict=True):
        taken = 0
        while place < len(words) and taken < length:
            word = words[place]
            taken += len(word.tokens)
            place += 1
            if word.text:
                word.start, word.end = (round(start + time, 2) for time in (word.start, word.end))
                segment.words.append(word)
        if segment.words:
            _fit(segment, median, last_speech)
            last_speech = segment.end


def _shorten_at_sentence_ends(words: Sequence[TimedWord], longest: float) -> None:
    """Cut marks that end a sentence at their end, and what follows them at its start."""
    for before, word in pairwise(words):
        if word.end - word.start > longest:
            if word.text in _SENTENCE_ENDS:
                word.end = word.start + longest
            elif before.text in _SENTENCE_ENDS:
                word.start = word.end - longest


def _fit(segment: Spoken, median: float, last_speech: float) -> None:
    """Shorten the first words behind a pause, and bring the times of a segment and of its words together."""
    first, last, longest = segment.words[0], segment.words[-1], 2 * median
    second = segment.words[1] if len(segment.words) > 1 else None
    is_long = first.end - first.start > longest or (second is not None and second.end - first.start > 2 * longest)
    if first.end - last_speech > _PAUSE * median and is_long:
        if second is not None and second.end - second.start > longest:
            first.end = second.start = max(second.end / 2, second.end - longest)
        first.start = max(0.0, first.end - longest)
    if segment.start < first.end and segment.start - _SLACK_S > first.start:
        first.start = max(0.0, min(first.end - median, segment.start))
    else:
        segment.start = first.start
    if segment.end > last.start and segment.end + _SLACK_S < last.end:
        last.end = max(last.start + median, segment.end)
    else:
        segment.end = last.end
