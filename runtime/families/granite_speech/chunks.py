"""Long recordings: chunks that are cut at the quietest place and transcribed each by itself.

ibm-granite/granite-speech, the model's own library, cuts hard every 30 s; chunks here are as long at most, and end in
the quietest pause of their last third. Nothing is carried from chunk to chunk, so a cut through a word would lose it:
hence the wider choice than a Parakeet window has, whose search goes on over the boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from runtime.audio import SampleBuffer
from runtime.chunk_boundaries import PAUSE_S, quietest_boundary
from runtime.engines.base import Floats
from runtime.silence import is_silent
from runtime.unspaced import gap

_FRAME_S = 0.02  # a frame of the encoder, on which chunks begin
_SHORTEST_S = 1.0  # a shorter rest has too little to go by, and the model makes words up


@dataclass(frozen=True)
class Chunk:
    """A stretch of a recording: `samples` f32 [n], which begin `start_s` seconds after its first sample."""

    samples: Floats
    start_s: float

    @property
    def is_silent(self) -> bool:
        """Whether it is digital silence, in which there is nothing to hear."""
        return is_silent(self.samples)


def cut_chunks(blocks: Iterable[Floats], sample_rate: int, chunk_s: float) -> Iterator[Chunk]:
    """Yield a recording's chunks in order; every sample is in one.

    None is longer than `chunk_s`, and none but a recording's only one is shorter than a second or a quarter of
    `chunk_s`.

    Parameters
    ----------
    blocks : iterable of Floats
        The recording, f32 [n] each; what is held of it is one chunk and one block.
    sample_rate : int
        Its rate in Hz.
    chunk_s : float
        The longest chunk in seconds, rounded down to whole frames of 20 ms, one at least.

    """
    frame = round(_FRAME_S * sample_rate)
    longest = max(1, int(chunk_s * sample_rate) // frame)
    shortest = min(round(_SHORTEST_S / _FRAME_S), longest // 2)
    pause = round(PAUSE_S / _FRAME_S)
    buffer = SampleBuffer(blocks)
    start = 0
    while True:
        samples = buffer.between(start, start + (longest + shortest) * frame)
        if len(samples) <= longest * frame:
            yield Chunk(samples, start / sample_rate)
            return
        n_frames = len(samples) // frame - shortest  # leaves so much for the next chunk where the recording ends there
        frames = samples[: n_frames * frame].reshape(n_frames, frame)
        kept = quietest_boundary(frames, longest // 3, pause) * frame
        yield Chunk(samples[:kept], start / sample_rate)
        start += kept


class TextJoiner:
    """Hands a transcript on while it is made, in pieces that in a row are the whole text.

    Spaces around a chunk's text are dropped; between two chunks stands one, but not in scripts that have none.

    Parameters
    ----------
    on_text : callable
        Is given each piece.

    """

    def __init__(self, on_text: Callable[[str], object]) -> None:
        self._on_text = on_text
        self._last = ""  # the last character that was handed on
        self._spaces = ""  # held back: they may be the chunk's last
        self._begins = True

    def begin(self) -> None:
        """Begin the next chunk."""
        self._spaces = ""
        self._begins = True

    def push(self, piece: str) -> None:
        """Hand on what came to the chunk's text."""
        text = self._spaces + piece
        if self._begins:
            text = text.lstrip()
        kept = text.rstrip()
        self._spaces = text[len(kept) :]
        if not kept:
            return
        space = gap(self._last, kept[0]) if self._begins else ""
        self._begins = False
        self._last = kept[-1]
        self._on_text(space + kept)


def join_texts(texts: Iterable[str]) -> str:
    """Return the text of a recording from those of its chunks."""
    pieces: list[str] = []
    joiner = TextJoiner(pieces.append)
    for text in texts:
        joiner.begin()
        joiner.push(text)
    return "".join(pieces)
