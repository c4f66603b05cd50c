"""Words and segments of timed tokens, in encoder frames, by NeMo's rules for subword vocabularies.

NeMo: nemo/collections/asr/parts/utils/timestamp_utils.py. How long a token lasts depends on the decoder.

1. A word begins with a token whose text differs from its piece, that is with a space before it, and reaches to the
   end of the token before the next word. A punctuation mark never begins a word but belongs to the one before it; a
   space alone right before the mark is dropped. (NeMo lists a space alone as a word without text; here it is none.)
2. A segment ends with a word that ends in `.`, `?` or `!`. With a gap, it also ends before a word that begins at least
   so many frames after the end of the word before (NeMo looks at gaps alone then).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.fastconformer.tokenizer import SPACE, SubwordTokenizer

SENTENCE_ENDS = (".", "?", "!")


@dataclass(frozen=True)
class Span:
    """From `start` to `end`, both in frames or both in seconds."""

    start: float
    end: float


@dataclass(frozen=True)
class WordSpan:
    """A word: its text, its times as those of its tokens, and which of the recording's tokens it is made of."""

    text: str
    span: Span
    tokens: range


def words_of(tokens: Sequence[int], spans: Sequence[Span], tokenizer: SubwordTokenizer) -> list[WordSpan]:
    """Return the words of a recording's tokens, of which `spans` are the times (rule 1)."""
    words: list[WordSpan] = []
    first, spelled = 0, list[int]()  # where the word begins, and the tokens of its text

    def close(stop: int) -> None:
        if text := tokenizer.decode_word(spelled):
            words.append(WordSpan(text, Span(spans[first].start, spans[stop - 1].end), range(first, stop)))

    for place, token in enumerate(tokens):
        piece, text = tokenizer.pieces[token], tokenizer.texts[token]
        is_mark = text in tokenizer.punctuation
        if piece != text and not is_mark:
            close(place)
            first, spelled = place, [token]
            continue
        if is_mark and spelled and tokenizer.pieces[spelled[-1]] == SPACE:
            spelled.pop()
        spelled.append(token)
    close(len(tokens))
    return words


def segments_of(words: Sequence[WordSpan], gap: float | None = None) -> list[list[WordSpan]]:
    """Return the words of each segment (rule 2); `gap` counts as their times do."""
    segments: list[list[WordSpan]] = []
    ended = True
    for word in words:
        if not ended and gap is not None and round(word.span.start - segments[-1][-1].span.end, 6) >= gap:
            ended = True
        if ended:
            segments.append([])
        segments[-1].append(word)
        ended = word.text.endswith(SENTENCE_ENDS)
    return segments
