"""What a recogniser is given of a recording, and where that lies in the recording."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from runtime.audio import Audio
from runtime.engines.base import Floats
from runtime.errors import InputError
from runtime.results import Segment, SpeechSpan, Word
from runtime.timer import Timer
from runtime.vad.options import SpeechOptions
from runtime.vad.silero import SAMPLE_RATE, SileroVad
from runtime.vad.spans import Span, speech_spans

# Whisper ends a segment in the pause behind it, mostly where the next one begins.
_SLACK_S = 0.2


@dataclass(frozen=True)
class Heard:
    """A clip of a recording, or only the speech in it, one stretch behind the other.

    Attributes
    ----------
    audio : Audio
        The recording.
    start_s, end_s : float
        The clip; `end_s` None: to the end.
    clip_s : float
        How long the clip is.
    spans : tuple of Span or None
        Stretches of speech, in samples at 16 kHz from the clip's start, none: there is no speech. None: all of it.
    pad_s : float
        How much at both ends of a stretch is no speech.

    """

    audio: Audio
    start_s: float
    end_s: float | None
    clip_s: float
    spans: tuple[Span, ...] | None = None
    pad_s: float = 0.0

    @property
    def seconds(self) -> float:
        """How much there is to recognise."""
        return self.clip_s if self.spans is None else sum(stop - start for start, stop in self.spans) / SAMPLE_RATE

    @property
    def speech(self) -> tuple[SpeechSpan, ...] | None:
        """The stretches of speech in the recording's time; None: nobody looked for them."""
        if self.spans is None:
            return None
        return tuple(
            SpeechSpan(*(self._rounded(sample / SAMPLE_RATE) for sample in (start, stop))) for start, stop in self.spans
        )

    def blocks(self, rate: int) -> Iterator[Floats]:
        """Yield what there is to recognise as `Audio.blocks` does, or nothing where there is no speech."""
        blocks = self.audio.blocks(rate, self.start_s, self.end_s)
        if self.spans is None:
            return blocks
        return _cut(blocks, [(a * rate // SAMPLE_RATE, b * rate // SAMPLE_RATE) for a, b in self.spans])

    def place(self, start_s: float, end_s: float) -> tuple[float, float]:
        """Return where in the recording something lies that is said at once, a token say; in seconds.

        What crosses the border of two stretches lies in the one with more of it.
        """
        if not self.spans:
            return self._clipped(start_s), self._clipped(end_s)
        at = max(0, bisect_right(self._begins, (start_s + end_s) / 2) - 1)
        return self._time(start_s, at), self._time(end_s, at)

    def placed(self, segment: Segment) -> Segment:
        """Return a segment, and its words, with the times of the recording.

        It may reach over several stretches of speech, but not into one of which it has little more than the padding.
        With words it reaches from the first to the last of them.
        """
        start_s, end_s = segment.start, segment.end
        if segment.words is not None:
            segment = replace(segment, words=tuple(map(self._placed_word, segment.words)))
        if not self.spans:
            return replace(segment, start=self._clipped(start_s), end=self._clipped(end_s))
        if segment.words:
            return replace(segment, start=segment.words[0].start, end=segment.words[-1].end)
        begins, least = self._begins, self.pad_s + _SLACK_S
        first = max(0, bisect_right(begins, start_s + least) - 1)
        last = max(0, bisect_left(begins, end_s - least) - 1)
        if first > last:  # within the padding on both sides of a border, or of no length
            start_s, end_s = self.place(start_s, end_s)
        else:
            start_s, end_s = self._time(start_s, first), self._time(end_s, last)
        return replace(segment, start=start_s, end=end_s)

    def _placed_word(self, word: Word) -> Word:
        start_s, end_s = self.place(word.start, word.end)
        return replace(word, start=start_s, end=end_s)

    @cached_property
    def _begins(self) -> list[float]:
        """Where each stretch begins in what is recognised."""
        lengths = ((stop - start) / SAMPLE_RATE for start, stop in self.spans or ())
        return list(accumulate(lengths, initial=0.0))[:-1]

    def _time(self, time_s: float, at: int) -> float:
        """Return a time in the recording, within stretch `at`."""
        assert self.spans
        start, stop = (sample / SAMPLE_RATE for sample in self.spans[at])
        return self._rounded(min(max(start + time_s - self._begins[at], start), stop))

    def _rounded(self, time_s: float) -> float:
        # To the microsecond: sums of binary fractions leave noise behind.
        return round(self.start_s + time_s, 6)

    def _clipped(self, time_s: float) -> float:
        # A token's last frame, or the last sample of another rate, may reach beyond the clip.
        return min(self._rounded(time_s), self.start_s + self.clip_s)


def listen(audio: Audio, options: SpeechOptions, vad: SileroVad | None, timer: Timer) -> Heard:
    """Return what the options ask to recognise of a recording; looking for speech is timed as `vad_s`.

    Raises
    ------
    InputError
        A VAD is asked for and the artifact has none, or the recording cannot be read.

    """
    clip = Heard(audio, options.start_s, options.end_s, options.seconds_of(audio.info.duration_s))
    if options.vad and vad is None:
        raise InputError("--vad: expected an artifact with a VAD, this has none; export the model with --vad")
    if vad is None or options.vad is False:
        return clip
    with timer.measure("vad_s", on_device=False):
        probabilities, n_samples = vad.probabilities(clip.blocks(SAMPLE_RATE))
        spans = speech_spans(map(float, probabilities), n_samples, options)
    return replace(clip, spans=spans, pad_s=options.vad_speech_pad_ms / 1000)


def _cut(blocks: Iterable[Floats], spans: Iterable[Span]) -> Iterator[Floats]:
    """Yield the samples of spans, which rise; what lies behind the last one is not read."""
    wanted = iter(spans)
    span = next(wanted, None)
    at = 0
    for block in blocks:
        stop = at + len(block)
        while span is not None and span[0] < stop:
            part = block[max(0, span[0] - at) : span[1] - at]
            if len(part):
                yield part
            if span[1] > stop:
                break
            span = next(wanted, None)
        if span is None:
            return
        at = stop
