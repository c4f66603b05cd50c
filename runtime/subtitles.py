"""Subtitles of a transcript: cut into cues and lines by words, as openai-whisper's writers do it.

1. Without a limit of lines or of their width, a cue ends with its segment, or after so many words.
2. A line that has no room for the next word ends before it; words are never cut.
3. With limits of both, cues are filled over the segments' ends: one ends when its lines are full, or before a word that
   begins more than 3 s after the one before.
4. Where words are highlighted, a cue is shown once for each word with that one marked, and unmarked in pauses.

openai-whisper takes the limits for transcripts with word times only. Where a family gives none, the time of a segment
is shared out among its words by their characters; in scripts without spaces each character is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

from runtime.results import Segment, SubtitleLimits
from runtime.unspaced import gap, is_unspaced

_LONG_PAUSE_S = 3.0
_UNLIMITED = 1000
# What closes a text belongs to the character before it.
_CHARACTER = re.compile(r"\s*\S[\u3001\u3002\uff01\uff1f\uff0c\u300d\u300f\uff09\uff61\u2026\u30fc]*")


@dataclass(frozen=True)
class Cue:
    """What is shown from `start` to `end`, in seconds; `text` may have several lines.

    `marked` are the first character of the word to highlight, and the one behind its last.
    """

    start: float
    end: float
    text: str
    marked: tuple[int, int] | None = None


@dataclass
class _Open:
    """A cue that is being filled."""

    words: list[Cue] = field(default_factory=list)
    lines: int = 1
    width: int = 0  # of the last line

    def closed(self, *, highlighted: bool) -> Iterator[Cue]:
        whole = Cue(self.words[0].start, self.words[-1].end, "".join(word.text for word in self.words))
        if not highlighted:
            yield whole
            return
        stop, shown = 0, whole.start
        for word in self.words:
            start, stop = stop, stop + len(word.text)
            if word.start != shown:
                yield replace(whole, start=shown, end=word.start)
            first = start + len(word.text) - len(word.text.lstrip())
            yield replace(whole, start=word.start, end=word.end, marked=(first, stop))
            shown = word.end


def cues(segments: Iterable[Segment], limits: SubtitleLimits) -> Iterator[Cue]:
    """Yield the cues of segments that have text; without limits one a segment."""
    segments = [segment for segment in segments if segment.text.strip()]
    if limits == SubtitleLimits():
        yield from (Cue(segment.start, segment.end, one_line(segment.text)) for segment in segments)
        return
    by_segment = limits.line_count is None or limits.line_width is None
    longest = limits.words_per_line or _UNLIMITED
    cue, last_start, before = _Open(), None, ""
    for segment in segments:
        for place, word in enumerate(_words(segment, before)):
            ends = by_segment and place % longest == 0
            pause = not by_segment and last_start is not None and word.start - last_start > _LONG_PAUSE_S
            has_room = cue.width + len(word.text) <= (limits.line_width or _UNLIMITED)
            if cue.words and has_room and not (ends or pause):
                cue.words.append(word)
                cue.width += len(word.text)
            else:
                full = limits.line_count is not None and (pause or cue.lines >= limits.line_count)
                if cue.words and (ends or full):
                    yield from cue.closed(highlighted=limits.highlight_words)
                    cue = _Open()
                text = word.text.strip()
                cue.lines += bool(cue.words)
                cue.words.append(replace(word, text=f"\n{text}" if cue.words else text))
                cue.width = len(text)
            last_start = word.start
        before = segment.text.strip()[-1]
    if cue.words:
        yield from cue.closed(highlighted=limits.highlight_words)


def one_line(text: str) -> str:
    """Return a text without the ends of its lines."""
    return " ".join(stripped for line in text.splitlines() if (stripped := line.strip()))


def _words(segment: Segment, before: str) -> Iterator[Cue]:
    """Yield the words of a segment, each with the space before it, where there is one; `before` ends the one before."""
    text = one_line(segment.text)
    first = gap(before, text[0])
    if segment.words is None:
        yield from _shared_out(segment, text, first)
        return
    stop = 0
    for word in segment.words:
        found = text.find(word.text, stop)
        start, stop = stop, max(stop, found + len(word.text))
        yield Cue(word.start, word.end, first + (text[start:stop] if found >= 0 else word.text))
        first = ""


def _shared_out(segment: Segment, text: str, first: str) -> Iterator[Cue]:
    """Yield the words of a text, each with its share of the segment's time."""
    pieces = list(_split(text))
    places = [0]
    for piece in pieces:
        places.append(places[-1] + len(piece))
    second = (segment.end - segment.start) / places[-1]
    times = [round(segment.start + place * second, 6) for place in places]
    pieces[0] = first + pieces[0]
    for (start, end), piece in zip(pairwise(times), pieces, strict=True):
        yield Cue(start, end, piece)


def _split(text: str) -> Iterator[str]:
    """Yield the words of a text that in a row are the text."""
    for word in re.findall(r"\s*\S+", text):
        if any(map(is_unspaced, word)):
            yield from _CHARACTER.findall(word)
        else:
            yield word
