"""Makes a result of what the search found: text, segments, words and tokens with times and confidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from runtime.fastconformer.confidence import AGGREGATIONS
from runtime.fastconformer.options import FastConformerOptions
from runtime.fastconformer.timestamps import Span, WordSpan, segments_of, text_of, words_of
from runtime.fastconformer.tokenizer import SPACE, SubwordTokenizer
from runtime.results import Segment, Token, Word


@dataclass(frozen=True)
class TimedToken:
    """A token with its time in frames, its natural log-probability, and how sure the model was, 0 to 1.

    `between`: its time goes from one token's frame to another's, between which a pause may have been left out.
    """

    token: int
    span: Span
    logprob: float
    confidence: float
    between: bool = False


def timed_segments(
    found: Sequence[TimedToken],
    tokenizer: SubwordTokenizer,
    options: FastConformerOptions,
    frame_s: float,
    place: Callable[[float, float], tuple[float, float]],
) -> tuple[Segment, ...]:
    """Return the segments of a recording.

    Parameters
    ----------
    found : sequence of TimedToken
        The recording's tokens in order, frames counted from the start of what is heard.
    tokenizer : SubwordTokenizer
        What they stand for.
    options : FastConformerOptions
        Aggregation and gaps.
    frame_s : float
        Seconds from one encoder frame to the next.
    place : callable
        Returns the recording's time of a token from start and end in what is heard, all in seconds.

    """
    ids = [timed.token for timed in found]
    # In the recording's time from here on: a gap between words is one that is there.
    spans = [_placed(timed, frame_s, place) for timed in found]
    tokens = [
        Token(
            id=timed.token,
            text=tokenizer.pieces[timed.token].replace(SPACE, " "),
            start=span.start,
            end=span.end,
            logprob=timed.logprob,
            confidence=timed.confidence,
        )
        for timed, span in zip(found, spans, strict=True)
    ]
    groups = segments_of(words_of(ids, spans, tokenizer), options.segment_gap_s)
    if not groups:
        return ()
    starts = [0, *(group[0].tokens.start for group in groups[1:]), len(tokens)]
    aggregate = AGGREGATIONS[options.aggregation]

    def word(part: WordSpan) -> Word:
        confidence = aggregate([tokens[place].confidence for place in part.tokens])
        return Word(part.text, part.span.start, part.span.end, confidence)

    return tuple(
        Segment(
            start=group[0].span.start,
            end=group[-1].span.end,
            text=text_of(group, ids[start:stop], tokenizer),
            tokens=tuple(ids[start:stop]),
            confidence=aggregate([token.confidence for token in tokens[start:stop]]),
            words=tuple(word(part) for part in group),
            token_times=tuple(tokens[start:stop]),
        )
        for group, (start, stop) in zip(groups, pairwise(starts), strict=True)
    )


def _placed(timed: TimedToken, frame_s: float, place: Callable[[float, float], tuple[float, float]]) -> Span:
    """Return a token's time in the recording."""
    start_s, end_s = timed.span.start * frame_s, timed.span.end * frame_s
    if timed.between:
        return Span(place(start_s, start_s + frame_s)[0], place(end_s, end_s + frame_s)[0])
    return Span(*place(start_s, end_s))


def remark_of(device: str, segments: Sequence[Segment], counts: Mapping[str, float]) -> str:
    """Return what was asked of the device per second of audio; without one, how sure the words are."""
    if device == "cpu":
        words = [word.confidence for segment in segments for word in segment.words or ()]
        return f"{len(words)} words, confidence {sum(words) / len(words):.2f}" if words else "no words"
    per_s = {name: count / counts["audio_s"] for name, count in counts.items()}
    operators = f"{per_s['operators']:.0f} operators, " if per_s["operators"] else ""
    return (
        f"per second of audio: {per_s['calls']:.2f} calls, {operators}"
        f"{per_s['copies_in'] + per_s['copies_out']:.2f} copies and {per_s['syncs']:.2f} syncs of the device, "
        f"{per_s['host_calls']:.1f} calls on the host"
    )
