"""Leaves out what a model makes up in silence, as openai-whisper does by the times and probabilities of words."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.families.whisper.segments import FRAME_S
from runtime.families.whisper.word_splitting import CLOSING, OPENING, TimedWord
from runtime.families.whisper.words import Spoken, Stretch

_IMPROBABLE = 0.15
_SHORT_S, _LONG_S = 0.133, 2.0
# A short word counts so much a second that it is too short.
_SHORT_WEIGHT = 15
# Of a segment's first words so many are looked at; as many improbable ones as this are enough.
_FIRST_WORDS, _ENOUGH = 8, 3
# Within so many seconds of an end of the window silence may go on outside of it.
_EDGE_S = 2.0


def is_anomalous(segment: Spoken | None) -> bool:
    """Tell whether the first words of a segment are improbable, very short or very long, nearly all of them."""
    if segment is None or not segment.words:
        return False
    words = [word for word in segment.words if word.text not in OPENING + CLOSING][:_FIRST_WORDS]
    score = sum(map(_anomaly, words))
    return score >= _ENOUGH or score + 0.01 >= len(words)


def _anomaly(word: TimedWord) -> float:
    seconds = word.end - word.start
    return (
        float(word.probability < _IMPROBABLE)
        + max(0.0, _SHORT_S - seconds) * _SHORT_WEIGHT
        + max(0.0, seconds - _LONG_S)
    )


def leading_silence(segments: Sequence[Spoken], stretch: Stretch) -> float:
    """Return how much silence is before a window's first segment, where that is anomalous; in seconds."""
    first = _next(segments)
    return first.start - stretch.start if first is not None and is_anomalous(first) else 0.0


def first_hallucination(
    segments: Sequence[Spoken], stretch: Stretch, last_speech: float, threshold: float
) -> int | None:
    """Return the place of the first anomalous segment with silence, or others like it, on both sides; None: no such.

    Parameters
    ----------
    segments : sequence of Spoken
        A window's, with words.
    stretch : Stretch
        The window.
    last_speech : float
        Where the words before the window end, in seconds.
    threshold : float
        Silence is longer than so many seconds.

    """
    for place, segment in enumerate(segments):
        if not segment.words:
            continue
        if is_anomalous(segment):
            following = _next(segments[place + 1 :])
            next_start = stretch.recorded if following is None else following.words[0].start
            before = (
                segment.start - last_speech > threshold
                or segment.start < threshold
                or segment.start - stretch.start < _EDGE_S
            )
            after = (
                next_start - segment.end > threshold or is_anomalous(following) or stretch.end - segment.end < _EDGE_S
            )
            if before and after:
                return place
        last_speech = segment.end
    return None


def frames_past(segment: Spoken, stretch: Stretch, threshold: float) -> int:
    """Return how many frames to go on by where a segment is left out: a second at least, or to the recording's end."""
    if stretch.total * FRAME_S - segment.end < threshold:
        return stretch.total - stretch.seek
    return stretch.frames_to(max(stretch.start + 1, segment.start))


def _next(segments: Sequence[Spoken]) -> Spoken | None:
    return next((segment for segment in segments if segment.words), None)
