"""Makes a result of what the search found: text, segments, words and tokens with times and confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from runtime.fastconformer.confidence import AGGREGATIONS
from runtime.fastconformer.options import FastConformerOptions
from runtime.fastconformer.timestamps import Span, WordSpan, segments_of, words_of
from runtime.fastconformer.tokenizer import SPACE, SubwordTokenizer
from runtime.results import Segment, Token, Word


@dataclass(frozen=True)
class TimedToken:
    """A token with its time in frames, its natural log-probability, and how sure the model was, 0 to 1."""

    token: int
    span: Span
    logprob: float
    confidence: float


def timed_segments(
    found: Sequence[TimedToken],
    tokenizer: SubwordTokenizer,
    options: FastConformerOptions,
    frame_s: float,
    start_s: float = 0.0,
) -> tuple[Segment, ...]:
    """Return the segments of a recording.

    Parameters
    ----------
    found : sequence of TimedToken
        The recording's tokens in order, frames counted from `start_s`.
    tokenizer : SubwordTokenizer
        What they stand for.
    options : FastConformerOptions
        Aggregation and gaps.
    frame_s : float
        Seconds from one encoder frame to the next.
    start_s : float
        Where the first frame lies in the recording, in seconds.

    """

    def seconds(frame: int) -> float:
        # To the microsecond: sums of binary fractions leave noise behind.
        return round(start_s + frame * frame_s, 6)

    ids, spans = [timed.token for timed in found], [timed.span for timed in found]
    tokens = [
        Token(
            id=timed.token,
            text=tokenizer.pieces[timed.token].replace(SPACE, " "),
            start=seconds(timed.span.start),
            end=seconds(timed.span.end),
            logprob=timed.logprob,
            confidence=timed.confidence,
        )
        for timed in found
    ]
    gap = None if options.segment_gap_s is None else round(options.segment_gap_s / frame_s, 6)
    groups = segments_of(words_of(ids, spans, tokenizer), gap)
    if not groups:
        return ()
    starts = [0, *(group[0].tokens.start for group in groups[1:]), len(tokens)]
    aggregate = AGGREGATIONS[options.aggregation]

    def word(part: WordSpan) -> Word:
        confidence = aggregate([tokens[place].confidence for place in part.tokens])
        return Word(part.text, seconds(part.span.start), seconds(part.span.end), confidence)

    return tuple(
        Segment(
            start=seconds(group[0].span.start),
            end=seconds(group[-1].span.end),
            text=" ".join(part.text for part in group),
            tokens=tuple(ids[start:stop]),
            confidence=aggregate([token.confidence for token in tokens[start:stop]]),
            words=tuple(word(part) for part in group),
            token_times=tuple(tokens[start:stop]),
        )
        for group, (start, stop) in zip(groups, pairwise(starts), strict=True)
    )


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
