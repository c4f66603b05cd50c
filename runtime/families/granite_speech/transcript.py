"""What a run of Granite Speech returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from runtime.families.granite_speech.chunks import join_texts
from runtime.families.granite_speech.ctc import Draft
from runtime.results import AudioInfo

_NOTES = {
    "length": "ended at the most tokens allowed",
    "repetition": "ended in a loop",
    "silence": "silent, not decoded",
}


@dataclass(frozen=True)
class SpeechSegment:
    """What the model said of one chunk; times in seconds from the start of the recording.

    `tokens` are the ids as decoded, without the end token; `avg_logprob` is their mean natural log-probability, None
    where the chunk is silent and was not decoded. `finish` says why the text ended: `end` token, `length` (the most
    tokens allowed: there may be more to say), `repetition`, or `silence`. `draft` is there where it was asked for.
    """

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    avg_logprob: float | None
    finish: Literal["end", "length", "repetition", "silence"]
    draft: Draft | None = None


@dataclass(frozen=True)
class SpeechTranscript:
    """One recording's text, or what else was asked for: `prompt` is the instruction that the model was given.

    `language` is the code of the language translated to; the model does not tell which one it hears. `steps` counts
    the tokens that the language model was asked for one by one, `tokens_per_s` how many of them in a second.
    `timings` holds wall seconds by stage (`frontend_s`, `encoder_s`, `prefill_s`, `decode_s`, `total_s`) and `rtf`.
    `simulated` says that the device was a stand-in, whose times say nothing of a real one.
    """

    model: str
    variant: str
    device: str
    engine: str
    audio: AudioInfo
    text: str
    language: str
    task: str
    prompt: str
    segments: tuple[SpeechSegment, ...]
    steps: int
    timings: dict[str, float] = field(default_factory=dict)
    simulated: bool = False

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second of the decode loop, None where there was none."""
        seconds = self.timings.get("decode_s")
        return self.steps / seconds if seconds else None

    @property
    def summary(self) -> str:
        """The text, and on a line of its own the draft where it was asked for."""
        drafts = [segment.draft.text for segment in self.segments if segment.draft is not None]
        return f"{self.text}\ndraft: {join_texts(drafts)}" if drafts else self.text

    @property
    def remark(self) -> str:
        """How fast the text came, whether some of it is missing, and how sure the encoder was of the draft."""
        count = sum(len(segment.tokens) for segment in self.segments)
        speed = "" if self.tokens_per_s is None else f", {self.tokens_per_s:.1f} a second"
        reasons = [segment.finish for segment in self.segments]
        notes = [f"{count} tokens{speed}"]
        for finish, note in _NOTES.items():
            if finish in reasons:
                notes.append(f"{reasons.count(finish)} of {len(reasons)} chunks {note}")
        drafts = [segment.draft for segment in self.segments if segment.draft is not None]
        if n_characters := sum(len(draft.text) for draft in drafts):
            sure = sum((draft.confidence or 0.0) * len(draft.text) for draft in drafts)
            notes.append(f"draft confidence {sure / n_characters:.2f}")
        return "; ".join(notes)

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain JSON types."""
        return asdict(self) | {"tokens_per_s": self.tokens_per_s}
