"""Recordings in blocks: mono, float32, at the model's rate."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import soxr

from runtime.engines.base import Floats
from runtime.errors import InputError
from runtime.results import AudioInfo

BLOCK_S = 10.0
# Far larger samples overflow when the mel spectrum squares them.
MAX_AMPLITUDE = 2.0**31


class Part(Protocol):
    """A stretch of a recording of one rate: `frames` samples per channel."""

    @property
    def rate(self) -> int:
        """Hz."""

    @property
    def frames(self) -> int:
        """Samples per channel."""

    def read(self, first: int, stop: int, block: int) -> Iterator[Floats]:
        """Yield f32 [n, channels] from one frame to another, n at most `block`."""


@dataclass(frozen=True)
class Audio:
    """A recording that was checked. `frames` counts samples per channel at `info.sample_rate`.

    `path` is the file, or a name for what is none. `parts` follow each other; `scale` brings samples into -1 to 1.
    """

    path: Path
    info: AudioInfo
    frames: int
    parts: tuple[Part, ...]
    scale: float = 1.0

    def blocks(self, rate: int, start_s: float = 0.0, end_s: float | None = None) -> Iterator[Floats]:
        """Yield the recording as mono float32 blocks of up to about 10 s; each call reads from the start.

        Channels are averaged. n frames at the file's rate r give floor(n * rate / r + 1/2) samples, by soxr's
        high-quality resampler, and do not depend on where blocks end. Where the rate changes within the recording,
        that holds for each stretch of one rate.

        Parameters
        ----------
        rate : int
            Sample rate of the blocks in Hz.
        start_s, end_s : float
            Part of the recording in seconds, rounded to frames; to the end by default.

        Yields
        ------
        Floats
            f32 [n], n >= 1.

        Raises
        ------
        InputError
            The part is empty or starts behind the end, a sample is not finite, or the file is damaged or truncated.

        """
        wanted = self._wanted(start_s, end_s)
        empty = True
        for source, stretch in itertools.groupby(wanted, key=lambda cut: cut[0].rate):
            chunks = self._mono(list(stretch))
            for chunk in chunks if source == rate else _resampled(chunks, source, rate):
                if len(chunk):
                    empty = False
                    yield chunk
        if empty:
            raise InputError(f"{self.path}: expected a recording, found less than one sample at {rate} Hz")

    def _wanted(self, start_s: float, end_s: float | None) -> list[tuple[Part, int, int]]:
        """Return the parts between two times with the first frame and the one after the last."""
        duration = self.info.duration_s
        stop_s = duration if end_s is None else min(end_s, duration)
        if not 0 <= start_s < duration:
            msg = f"{self.path}: expected a start within its {duration:.2f} s, found {start_s} s"
            raise InputError(msg)
        if not start_s < stop_s:
            msg = f"{self.path}: expected an end after the start at {start_s} s, found {end_s} s"
            raise InputError(msg)
        cuts = []
        begin_s = 0.0
        for part in self.parts:
            # Rounded from the part's begin: a recording of one part has it at 0.
            first = min(max(0, round((start_s - begin_s) * part.rate)), part.frames)
            stop = min(max(0, round((stop_s - begin_s) * part.rate)), part.frames)
            cuts.append((part, first, stop))
            begin_s += part.frames / part.rate
        if any(stop > first for _, first, stop in cuts):
            return [cut for cut in cuts if cut[2] > cut[1]]
        # Shorter than a frame: the frame it lies in.
        part, first, _ = next(cut for cut in reversed(cuts) if cut[1] > 0 or cut is cuts[0])
        first = min(first, part.frames - 1)
        return [(part, first, first + 1)]

    def _mono(self, cuts: Sequence[tuple[Part, int, int]]) -> Iterator[Floats]:
        """Yield the frames of parts, averaged over channels."""
        for part, first, stop in cuts:
            at = first
            for frames in part.read(first, stop, max(1, int(BLOCK_S * part.rate))):
                with np.errstate(all="ignore"):
                    mono: Floats = frames.mean(axis=1)
                check_range(str(self.path), mono, at / part.rate)
                at += len(mono)
                yield mono if self.scale == 1.0 else mono * np.float32(self.scale)


class SampleBuffer:
    """A stream of samples, f32 [n] each, of which a stretch is held."""

    def __init__(self, blocks: Iterable[Floats]) -> None:
        self._blocks = iter(blocks)
        self._held: Floats = np.zeros(0, np.float32)
        self._start = 0

    def between(self, start: int, stop: int) -> Floats:
        """Return the samples from `start`, which never falls, to `stop` or the stream's end; drop those before."""
        parts = [self._held[start - self._start :]]
        missing = stop - start - len(parts[0])
        while missing > 0 and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            missing -= len(block)
        self._held = np.concatenate(parts)
        self._start = start
        return self._held[: stop - start]


def check_range(label: str, samples: Floats, start_s: float) -> float:
    """Return the largest magnitude of some samples.

    Raises
    ------
    InputError
        One is not finite or above 2**31.

    """
    largest = float(np.abs(samples).max())
    if not largest <= MAX_AMPLITUDE:  # so that NaN is refused too
        raise InputError(
            f"{label}: expected a recording, found samples that are not finite or out of range (NaN, Inf) after "
            f"{start_s:.1f} s"
        )
    return largest


def _resampled(chunks: Iterator[Floats], source: int, target: int) -> Iterator[Floats]:
    stream = soxr.ResampleStream(source, target, 1, dtype="float32")
    for chunk in chunks:
        yield stream.resample_chunk(chunk)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)
