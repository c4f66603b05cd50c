"""What a run of a recogniser returns; `to_json` is what `run --json` prints, `atlasport schema` tells its shape."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import InstanceOf, TypeAdapter
from pydantic.json_schema import SkipJsonSchema

# Counts up whenever a field of the JSON goes or changes its meaning; fields that are added do not change it.
SCHEMA_VERSION = 2

_NOT_JSON = {"remark", "scores", "subtitles"}

Finish = Literal["end", "length", "repetition", "silence"]


@dataclass(frozen=True)
class AudioInfo:
    """The recording: path, duration in seconds, of the clip where one was asked for, sample rate of the file in Hz.

    `remark` says what a person should know of it: what a damaged file misses, sizes or scales that were set right.
    """

    path: str
    duration_s: float
    sample_rate: int
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every family's recogniser returns for one recording.

    `timings` holds wall seconds by stage (`frontend_s`, `encoder_s`, ..., `total_s`) and `rtf`. `simulated` says that
    the device was a stand-in, whose times say nothing of a real one. `remark` is what a person should know beside the
    result, in a few words; it is not part of the JSON.
    """

    schema_version: int = SCHEMA_VERSION
    model: str
    variant: str
    device: str
    engine: str
    audio: AudioInfo
    timings: dict[str, float] = field(default_factory=dict)
    simulated: bool = False
    remark: SkipJsonSchema[str] = field(default="", repr=False)

    @property
    def summary(self) -> str:
        """What a person reads first, on one line or several."""
        raise NotImplementedError

    @property
    def n_tokens(self) -> int | None:
        """How many tokens were decoded, None where nothing is."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain JSON types."""
        kept = {part.name: getattr(self, part.name) for part in fields(self) if part.name not in _NOT_JSON}
        return {name: _plain(value) for name, value in kept.items()}


@dataclass(frozen=True)
class Token:
    """A token that has a time.

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
class Word:
    """A word with its punctuation marks; times in seconds from the start of the recording, confidence 0 to 1.

    Whisper's confidence is the mean probability of the word's tokens.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class SpeechSpan:
    """A stretch of the recording that is taken for speech; seconds from its start."""

    start: float
    end: float


@dataclass(frozen=True)
class Draft:
    """What an encoder spells by itself; `confidence` is between 0 and 1, None where it spells nothing."""

    text: str
    confidence: float | None


@dataclass(frozen=True)
class Segment:
    """A stretch of speech; times in seconds from the start of the recording. None: the family does not tell.

    Attributes
    ----------
    tokens : tuple of int
        The ids as decoded, timestamp tokens included, the end token not.
    avg_logprob : float or None
        Mean natural log-probability per decoded token, of a window's where it has several segments.
    no_speech_prob : float or None
        Probability of the no-speech token at the window's first position.
    compression_ratio : float or None
        zlib's ratio of the window's text.
    temperature : float or None
        The one at which the window's text was accepted.
    finish : str or None
        Why the text ended: `end` token, `length` (the most tokens allowed: there may be more to say), `repetition`, or
        `silence`: it was not decoded.
    confidence : float or None
        0 to 1.
    words : tuple of Word or None
        The segment's words.
    token_times : tuple of Token or None
        `tokens` one by one, with their texts and times.
    draft : Draft or None
        The encoder's own reading, where it was asked for.

    """

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None
    temperature: float | None = None
    finish: Finish | None = None
    confidence: float | None = None
    words: tuple[Word, ...] | None = None
    token_times: tuple[Token, ...] | None = None
    draft: Draft | None = None


@dataclass(frozen=True)
class SubtitleLimits:
    """Characters of a line, lines of a cue, and words of a line; None: no limit. See `subtitles`.

    `highlight_words`: each word is underlined while it is spoken.
    """

    line_width: int | None = None
    line_count: int | None = None
    words_per_line: int | None = None
    highlight_words: bool = False


@dataclass(frozen=True, kw_only=True)
class Transcript(Result):
    """One recording's text. None: the family does not tell.

    Attributes
    ----------
    language : str
        Code of the text's language; empty: the family does not tell.
    language_probability : float or None
        How probable the language is, 0 to 1, where it was detected.
    task : str or None
        What was asked for, `prompt` where it was put in one's own words.
    prompt : str or None
        The instruction, or the text before it, that the model was given.
    draft : str or None
        The encoder's own reading, where it was asked for.
    steps : int or None
        Tokens that a language model was asked for one by one.
    tokens_per_s : float or None
        How many of them in a second.
    counts : dict or None
        What was asked of the device: `calls` of graphs, the `operators` in them (0 where the engine does not know),
        `copies_in` and `copies_out`, `syncs` (waits of the host), and beside it `host_calls` of graphs on the host;
        all for `audio_s` seconds of audio, those of all recordings of a batch.
    speech : tuple of SpeechSpan or None
        The stretches that were recognised; None: nobody looked for speech, and all of the recording was.
    subtitles : SubtitleLimits
        How subtitles are to be cut; not part of the JSON.

    """

    text: str
    segments: tuple[Segment, ...]
    language: str = ""
    language_probability: float | None = None
    task: str | None = None
    prompt: str | None = None
    draft: str | None = None
    steps: int | None = None
    tokens_per_s: float | None = None
    counts: dict[str, float] | None = None
    speech: tuple[SpeechSpan, ...] | None = None
    subtitles: SkipJsonSchema[SubtitleLimits] = field(default=SubtitleLimits(), repr=False)

    @property
    def summary(self) -> str:
        """The text, and on a line of its own the draft where it was asked for."""
        return self.text if self.draft is None else f"{self.text}\ndraft: {self.draft}"

    @property
    def n_tokens(self) -> int:
        """How many tokens were decoded."""
        return sum(len(segment.tokens) for segment in self.segments)


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


@dataclass(frozen=True, kw_only=True)
class SoundEvents(Result):
    """One recording's sounds: `tags` by score, highest first; `events` by onset.

    `resolution_s` is the step of the model's scores: onsets and offsets are multiples of it. `scores` is there where
    the options ask for it, and not part of the JSON.
    """

    tags: tuple[Tag, ...]
    events: tuple[Event, ...]
    resolution_s: float
    scores: Annotated[InstanceOf[FramewiseScores] | None, SkipJsonSchema()] = field(default=None, repr=False)

    @property
    def summary(self) -> str:
        """The events, one a line, or the best tags where there are none."""
        if self.events:
            return "\n".join(f"{e.onset:9.2f} {e.offset:9.2f}  {e.label} ({e.score:.2f})" for e in self.events)
        tags = ", ".join(f"{tag.label} ({tag.score:.2f})" for tag in self.tags[:3])
        return f"no events; highest tags: {tags}"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of every result's JSON."""
    schema = TypeAdapter(Transcript | SoundEvents).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "atlasport result", **schema}


def _plain(value: Any) -> Any:
    """Return dataclasses as dicts, within tuples too."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if not hasattr(value, "__dataclass_fields__") else asdict(value)
