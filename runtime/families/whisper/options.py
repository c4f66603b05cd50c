"""How to transcribe: what the command line's options set, and what a manifest's recordings keep."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from runtime.options import Flag
from runtime.vad.options import SpeechOptions

# The language that is detected.
AUTO = "auto"
Temperature = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Threshold = Annotated[float, Field(allow_inf_nan=False)]


class WhisperOptions(SpeechOptions):
    """Options of one transcription; the defaults are those of openai/whisper's command line, with greedy search.

    But for two: `best_of`, and text is not conditioned on the text before it, as in transformers, since one bad window
    then spoils all that follow (whisper-pocket on samples/long_en.wav: word error rate 0.54 with it, 0.20 without).

    Attributes
    ----------
    language : str or None
        Spoken language, code or English name; "auto" detects it where speech is. None: as the checkpoint's
        generation settings say, which mostly is "auto".
    language_candidates : tuple of str
        The languages among which it is detected, codes or English names; none: all that the model knows.
    task : {"transcribe", "translate"} or None
        Text in the spoken language, or in English. None: as the checkpoint says, which mostly is "transcribe".
    timestamps : bool
        Predict times for a recording that fits one window too; it is then cut into segments. A longer one always
        has them: the windows move by them.
    word_timestamps : bool
        Find when each word is spoken, and how probable it is; segments have times, too, those of their words. Takes one
        more pass of the decoder a window, by the heads that look where a word is spoken (graph align).
    hallucination_silence_threshold : float or None
        Beside `word_timestamps`: silence of more seconds than this is skipped where what is heard next to it is made
        up, which its words' times and probabilities tell.
    initial_prompt : str or None
        Text taken as what was said before: spelling of names, style.
    condition_on_previous_text : bool
        Give each window the text before it as prompt; if not, each gets `initial_prompt` only. Text sampled at a
        temperature above 0.5 and all before it is never given.
    temperatures : tuple of float
        0 is greedy; the next is tried when a window's result fails a threshold. Where all fail, the result with the
        highest mean log-probability is kept, of those that are no repetition where there are any.
    best_of : int
        So many samples are drawn at a temperature above 0; the one with the highest mean log-probability counts. One,
        as `whisper.transcribe` draws: the 5 of openai/whisper's command line, one after the other, make a window that
        fails cost 6 times as much (whisper-base, Japanese to English: 29 s for 4.5) for a log-probability of -1.06 in
        place of -1.15.
    compression_ratio_threshold : float or None
        A text that zlib makes more than this many times smaller is a repetition, and fails.
    logprob_threshold : float or None
        A mean log-probability per token below this fails.
    no_speech_threshold : float or None
        A window whose no-speech probability is above this, and whose mean log-probability is below
        `logprob_threshold` (if there is one), is silence and skipped.
    max_new_tokens : int or None
        At most so many tokens per window, the end token included; None: as many as the checkpoint's generation
        settings allow, which mostly is as many as the model has positions for.
    suppress_tokens : tuple of int or None
        Token ids never to emit; None: the checkpoint's list.
    seed : int
        Of the samples drawn at temperatures above 0.

    """

    language: Annotated[
        str | None,
        Flag("Code or name (en, german), or auto: detected. Default: the checkpoint's, mostly auto."),
    ] = None
    language_candidates: Annotated[
        tuple[str, ...],
        Flag("Detect it among these alone: ja,en. Default: all.", parse=partial(str.split, sep=","), metavar="NAMES"),
    ] = ()
    task: Annotated[
        Literal["transcribe", "translate"] | None,
        Flag("Text as spoken, or in English. Default: the checkpoint's, mostly transcribe."),
    ] = None
    timestamps: Annotated[bool, Flag("Decode segment times also where the audio fits a window.")] = False
    word_timestamps: Annotated[bool, Flag("Find the time of each word, and how probable it is.")] = False
    hallucination_silence_threshold: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        Flag("Skip longer silence beside made-up words.", "--hallucination-silence", "seconds"),
    ] = None
    initial_prompt: Annotated[str | None, Flag("Text that the recording might follow (names, style).", "--prompt")] = (
        None
    )
    condition_on_previous_text: Annotated[bool, Flag("Prompt each window with the text before it.", "--condition")] = (
        False
    )
    temperatures: Annotated[
        tuple[Temperature, ...],
        Flag(
            "Tried in turn while a window fails a threshold. Default: 0,0.2,0.4,0.6,0.8,1.",
            parse=partial(str.split, sep=","),
            metavar="NUMBERS",
        ),
    ] = Field(default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0), min_length=1)
    best_of: Annotated[int, Flag("Drawn at each temperature above 0; the likeliest counts.", unit="samples")] = Field(
        default=1, ge=1
    )
    compression_ratio_threshold: Annotated[
        Threshold | None, Flag("A window's text above this is a repetition.", "--compression-ratio")
    ] = 2.4
    logprob_threshold: Annotated[
        Threshold | None, Flag("A window with a mean log-probability below this fails.", "--logprob")
    ] = -1.0
    no_speech_threshold: Annotated[
        Threshold | None, Flag("No-speech probability that skips a window.", "--no-speech")
    ] = 0.6
    max_new_tokens: Annotated[int | None, Flag("At most so many in a window.", unit="tokens")] = Field(
        default=None, ge=1
    )
    suppress_tokens: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    seed: int = Field(default=0, ge=0)

    @field_validator("hallucination_silence_threshold")
    @classmethod
    def _by_words(cls, threshold: float | None, info: ValidationInfo) -> float | None:
        if threshold is not None and not (info.data.get("word_timestamps") or info.data.get("highlight_words")):
            raise ValueError("expected --word-timestamps beside it")
        return threshold

    @property
    def times_words(self) -> bool:
        """Whether words get times: asked for, or needed to highlight them."""
        return self.word_timestamps or self.highlight_words

    @field_validator("language_candidates")
    @classmethod
    def _to_detect(cls, candidates: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        language = info.data.get("language") or AUTO
        if candidates and language.strip().lower() != AUTO:
            raise ValueError(f"expected no --language beside it, or auto; {language} is not detected")
        return candidates
