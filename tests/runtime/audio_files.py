"""Recordings for tests of how they are read, made by soundfile; damage is put in by hand."""

from __future__ import annotations

import io
import re

import numpy as np
import soundfile

KINDS = {"ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", None)}


def speech_like(seconds: float, rate: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Noise whose loudness changes: pages and frames of different size."""
    frames = round(seconds * rate)
    noise = np.random.default_rng(seed).standard_normal((frames, channels))
    return 0.1 * noise.clip(-3, 3) * (1.1 + np.sin(np.arange(frames) / rate * 7))[:, None]


def encoded(data: np.ndarray, rate: int, kind: str, subtype: str | None = None) -> bytes:
    container, default = KINDS.get(kind, (kind, None))
    buffer = io.BytesIO()
    soundfile.write(buffer, data, rate, format=container, subtype=subtype or default)
    return buffer.getvalue()


def decoded(data: bytes) -> tuple[np.ndarray, int]:
    """soundfile's samples [n], averaged over channels, and their rate."""
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return samples.mean(axis=1), rate


def ogg_pages(data: bytes) -> list[bytes]:
    """The pages of an Ogg file, by their capture pattern (no page of these tests has it in its body)."""
    starts = [match.start() for match in re.finditer(rb"OggS\0", data)]
    return [data[start:stop] for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)]
