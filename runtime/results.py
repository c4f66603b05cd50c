"""What a run of a recogniser returns; `to_json` is the object that `run --json` prints (DESIGN.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class AudioInfo:
    """The recording: path, duration in seconds, sample rate of the file in Hz.

    `remark` says what a person should know of it: what a damaged file misses, sizes or scales that were set right.
    """

    path: str
    duration_s: float
    sample_rate: int
    remark: str = ""


class Result(Protocol):
    """What every family's recogniser returns for one recording."""

    @property
    def variant(self) -> str:
        """Precision of the artifact."""

    @property
    def device(self) -> str:
        """Device that the graphs ran on."""

    @property
    def engine(self) -> str:
        """Name of the engine."""

    @property
    def audio(self) -> AudioInfo:
        """The recording."""

    @property
    def timings(self) -> dict[str, float]:
        """Wall seconds by stage, `total_s`, and `rtf`."""

    @property
    def simulated(self) -> bool:
        """Whether the device was a stand-in, whose times say nothing of a real one."""

    @property
    def summary(self) -> str:
        """What a person reads first, on one line or several."""

    @property
    def remark(self) -> str:
        """What a person should know beside it, in a few words."""

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain JSON types."""


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
    """One recording's text. `timings` holds wall seconds by stage (`encoder_s`, `step_s`, ..., `total_s`) and `rtf`.

    `simulated` says that the device was a stand-in, whose times say nothing of a real one.
    """

    model: str
    variant: str
    device: str
    engine: str
    audio: AudioInfo
    text: str
    language: str
    segments: tuple[Segment, ...]
    timings: dict[str, float] = field(default_factory=dict)
    simulated: bool = False

    @property
    def summary(self) -> str:
        """The text."""
        return self.text

    @property
    def remark(self) -> str:
        """The language."""
        return f"language {self.language}"

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class TimedToken:
    """A token of a transcript.

    `text` is the piece with the space before it, where it has one. Times are seconds from the start of the recording,
    `logprob` is the natural log-probability, `confidence` lies between 0 and 1.
    """

    id: int
    text: str
    start: float
    end: float
    logprob: float
    confidence: float


@dataclass(frozen=True)
class TimedWord:
    """A word with its punctuation marks; times in seconds from the start of the recording, confidence 0 to 1."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class TimedSegment:
    """A sentence; times in seconds from the start of the recording, confidence 0 to 1."""

    start: float
    end: float
    text: str
    tokens: tuple[TimedToken, ...]
    words: tuple[TimedWord, ...]
    confidence: float


@dataclass(frozen=True)
class TimedTranscript:
    """One recording's text, in which every token has a time.

    `timings` holds wall seconds by stage (`frontend_s`, `encoder_s`, `decode_s`, `total_s`) and `rtf`. `counts` says
    what was asked of the device: `calls` of graphs, the `operators` in them (0 where the engine does not know),
    `copies_in` and `copies_out`, `syncs` (waits of the host), and beside it `host_calls` of graphs on the host; all
    for `audio_s` seconds of audio, those of all recordings of a batch. `simulated` says that the device was a
    stand-in, whose times say nothing of a real one.
    """

    model: str
    variant: str
    device: str
    engine: str
    audio: AudioInfo
    text: str
    segments: tuple[TimedSegment, ...]
    timings: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    simulated: bool = False

    @property
    def summary(self) -> str:
        """The text."""
        return self.text

    @property
    def remark(self) -> str:
        """What was asked of the device per second of audio; without one, how sure the words are."""
        if self.device == "cpu":
            words = [word.confidence for segment in self.segments for word in segment.words]
            return f"{len(words)} words, confidence {sum(words) / len(words):.2f}" if words else "no words"
        seconds = self.counts["audio_s"]
        per_s = {name: count / seconds for name, count in self.counts.items()}
        operators = f"{per_s['operators']:.0f} operators, " if per_s["operators"] else ""
        return (
            f"per second of audio: {per_s['calls']:.2f} calls, {operators}"
            f"{per_s['copies_in'] + per_s['copies_out']:.2f} copies and {per_s['syncs']:.2f} syncs of the device, "
            f"{per_s['host_calls']:.1f} calls on the host"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Tag:
    """A sound class and how sure the model is that the recording has it, 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True)
class Event:
    """A sound from `onset` to `offset`, seconds from the start of the recording; `score` is its highest, 0 to 1."""

    onset: float
    offset: float
    label: str
    score: float


@dataclass(frozen=True)
class Spectrogram:
    """A recording's log-mel spectrogram `db` [columns, n_mels] f32, pooled to a bounded number of columns.

    A column is the mean of `frames_per_column` frames, the last one of those left. The bands are evenly spaced on
    Slaney's mel scale from `f_min` to `f_max` Hz.
    """

    db: NDArray[np.float32]
    frames_per_column: int
    f_min: float
    f_max: float


@dataclass(frozen=True)
class FramewiseScores:
    """All scores [n_scores, n_classes] f32 of a recording, in a temporary file that goes with the array.

    `labels` names the columns. Each score holds for `frames_per_score` frames of `frame_s` seconds, the last one also
    for those behind it: `n_frames` in all. The first frame begins `start_s` seconds into the recording.
    """

    scores: NDArray[np.float32]
    labels: tuple[str, ...]
    frames_per_score: int
    frame_s: float
    n_frames: int
    start_s: float
    spectrogram: Spectrogram


@dataclass(frozen=True)
class SoundEvents:
    """One recording's sounds: `tags` by score, highest first; `events` by onset.

    `resolution_s` is the step of the model's scores: onsets and offsets are multiples of it. `scores` is there where
    the options ask for it, and not part of the JSON.
    """

    model: str
    variant: str
    device: str
    engine: str
    audio: AudioInfo
    tags: tuple[Tag, ...]
    events: tuple[Event, ...]
    resolution_s: float
    timings: dict[str, float] = field(default_factory=dict)
    simulated: bool = False
    scores: FramewiseScores | None = field(default=None, repr=False)

    @property
    def summary(self) -> str:
        """The events, one a line, or the best tags where there are none."""
        if self.events:
            return "\n".join(f"{e.onset:9.2f} {e.offset:9.2f}  {e.label} ({e.score:.2f})" for e in self.events)
        tags = ", ".join(f"{tag.label} ({tag.score:.2f})" for tag in self.tags[:3])
        return f"no events; highest tags: {tags}"

    @property
    def remark(self) -> str:
        """The true resolution of onsets and offsets."""
        return f"times in steps of {1000 * self.resolution_s:.0f} ms"

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain JSON types, without framewise scores."""
        whole = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "scores"}
        return {
            **whole,
            "audio": asdict(self.audio),
            "tags": [asdict(tag) for tag in self.tags],
            "events": [asdict(event) for event in self.events],
        }
