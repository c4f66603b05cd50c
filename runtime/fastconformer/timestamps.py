"""Words and segments of timed tokens, in encoder frames, by NeMo's rules for subword vocabularies.

NeMo: nemo/collections/asr/parts/utils/timestamp_utils.py. How long a token lasts depends on the decoder.

1. A word begins with a token whose text differs from its piece, that is with a space before it, and reaches to the
   end of the token before the next word. A punctuation mark never begins a word but belongs to the one before it; a
   space alone right before the mark is dropped. (NeMo lists a space alone as a word without text; here it is none.)
   In Japanese and Chinese, whose words have no spaces between them, each token is a word; to NeMo a recording is one.
2. A segment ends with a word that ends in `.`, `?` or `!`, or in those marks of Japanese and Chinese. With a gap, it
   also ends before a word that begins at least so long after the end of the word before (NeMo looks at gaps alone
   then). Between words without spaces a pause of 0.6 s ends it where no gap is given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.fastconformer.tokenizer import SPACE, SubwordTokenizer
from runtime.unspaced import is_unspaced

# NeMo's marks; those of Japanese and Chinese, before closing brackets too.
_SENTENCE_END = re.compile(r"[.?!]$|[\u3002\uff01\uff1f\uff61\uff0e][\u300d\u300f\uff09\u3011\u201d\u2019]*$")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>$")
# Seconds between words without spaces.
UNSPACED_GAP_S = 0.6


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
        before = tokenizer.texts[spelled[-1]][-1:] if spelled else ""
        if not is_mark and _begins_word(piece, text, before):
            close(place)
            first, spelled = place, [token]
            continue
        if is_mark and spelled and tokenizer.pieces[spelled[-1]] == SPACE:
            spelled.pop()
        spelled.append(token)
    close(len(tokens))
    return words


def segments_of(
    words: Sequence[WordSpan], gap: float | None = None, unspaced_gap: float = UNSPACED_GAP_S
) -> list[list[WordSpan]]:
    """Return the words of each segment (rule 2); gaps count as their times do."""
    segments: list[list[WordSpan]] = []
    ended = True
    for word in words:
        if not ended:
            last = segments[-1][-1]
            unspaced = is_unspaced(last.text[-1]) and is_unspaced(word.text[0])
            longest = unspaced_gap if gap is None and unspaced else gap
            ended = longest is not None and round(word.span.start - last.span.end, 6) >= longest
        if ended:
            segments.append([])
        segments[-1].append(word)
        ended = _SENTENCE_END.search(word.text) is not None
    return segments


def text_of(words: Sequence[WordSpan], tokens: Sequence[int], tokenizer: SubwordTokenizer) -> str:
    """Return the text of a segment; where words have no spaces between them, as the tokenizer writes it."""
    text = " ".join(word.text for word in words)
    return tokenizer.decode(tokens) if any(map(is_unspaced, text)) else text


def _begins_word(piece: str, text: str, before: str) -> bool:
    """Tell whether a token begins a word, given the character before it ("" at the beginning)."""
    unspaced = bool(before) and is_unspaced(before)
    if _BYTE.match(piece):  # of a character that the vocabulary lacks
        return unspaced
    return piece != text or unspaced or (bool(before) and is_unspaced(text[:1] or " "))
