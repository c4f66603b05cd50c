"""What a run of a speech recogniser returns; `to_json` is the object that `run --json` prints (DESIGN.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class AudioInfo:
    """The recording: path, duration in seconds, sample rate of the file in Hz."""

    path: str
    duration_s: float
    sample_rate: int


@dataclass(frozen=True)
class Segment:
    """A stretch of speech. Times are seconds from the start of the recording.

    `tokens` are the ids as decoded, timestamp tokens included. `avg_logprob` is the mean natural log-probability per
    decoded token of the window, `no_speech_prob` the probability of the no-speech token at the window's first
    position, `compression_ratio` the zlib ratio of the window's text, `temperature` the one that was accepted.
    """

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float


@dataclass(frozen=True)
class Transcript:
    """One recording's text. `timings` holds wall seconds by stage (`encoder_s`, `step_s`, ..., `total_s`) and `rtf`."""

    model: str
    variant: str
    device: str
    engine: str
    audio: AudioInfo
    text: str
    language: str
    segments: tuple[Segment, ...]
    timings: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain JSON types."""
        return asdict(self)
