"""Goes over a recording window by window: prompts, temperature fallback, silence, segments, sequential long form.

The procedure is openai/whisper's `transcribe` as transformers' `generate` implements it; without fallback both give
the same tokens. Where this differs from transformers (5.23), on purpose:

1. Repetition is judged by the compression ratio of the text, as in openai/whisper, not of token ids.
2. Samples (temperature above 0) come from all tokens, as in openai/whisper, not from the 50 likeliest.
3. Text sampled at a temperature above 0.5 and all before it is never a prompt again, as in openai/whisper;
   transformers leaves it out of the next window's prompt only.
4. The padding behind a recording shorter than a window is not decoded when timestamps are on; transformers goes on
   to the window's end and may report speech there. No time lies behind the recording's end.
5. A window without a timestamp ends its segment at its exact end; transformers may lose 0.02 s to float rounding.
6. An initial prompt is cut to its last n_text_ctx // 2 - 1 tokens in every case.
7. With `no_speech_threshold` and no `logprob_threshold`, no-speech alone decides, as in openai/whisper; transformers
   raises an error.
8. The task token is always in a multilingual model's prompt; transformers leaves it out unless the task, the language
   or the checkpoint sets it.
9. Without timestamps, a recording that fits one window is decoded once and is one segment. transformers cuts it where
   the model puts timestamp tokens all the same (an untrained one does) and decodes the rest again.
10. Segments without text are left out of the result; they stay in the next window's prompt.
11. Tokens that a fine-tune added behind the timestamps are text; transformers takes them for times where there are
    timestamps.
12. Behind a recording shorter than a window the features are 0, as in openai/whisper; transformers pads the samples.
13. A checkpoint that sets no `max_length` may fill the model's positions; transformers stops after 20 tokens.
14. Of `best_of` samples at a temperature above 0 the one with the highest mean log-probability counts, of those that
    are no repetition where there are any; openai/whisper lets a repetition win, transformers draws one.
15. Where every temperature fails, the result with the highest mean log-probability is kept, of those that are no
    repetition where there are any, as in faster-whisper; transformers keeps the last sample. What comes after is
    prompted as if that had been kept.
16. The language is detected where speech is, see `language_detection`; transformers takes the first window's.
17. A recording of digital silence is neither decoded nor asked for its language: there is nothing in it, but tiny.en
    hears "you" in 8 s of zeros.
18. With word times the next window begins where the last word ends, and segments without duration are left out, as in
    openai/whisper.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from runtime.errors import InputError
from runtime.families.whisper.encoder_decoder import Decoding, WhisperEncoderDecoder, Window
from runtime.families.whisper.features import Features
from runtime.families.whisper.hallucinations import first_hallucination, frames_past, leading_silence
from runtime.families.whisper.language_detection import spoken_language
from runtime.families.whisper.languages import language_code
from runtime.families.whisper.options import AUTO, WhisperOptions
from runtime.families.whisper.rules import (
    Rule,
    SuppressAtBegin,
    SuppressTokens,
    TimestampRules,
    choose,
    compression_ratio,
)
from runtime.families.whisper.segments import FRAME_S, FRAMES_PER_STEP, Piece, cut_window, ends_by_itself
from runtime.families.whisper.settings import WhisperDims, WhisperSettings
from runtime.families.whisper.tokenizer import WhisperTokenizer
from runtime.families.whisper.words import Spoken, Stretch, WordTimes, end_of
from runtime.family import Progress
from runtime.results import Segment, Word

# A prompt sampled at a temperature above this leads the next window into repetition (openai/whisper).
_HOT = 0.5


@dataclass(frozen=True)
class Judged:
    """A window's decoding with what it was judged by; `accepted` if no higher temperature need be tried."""

    decoding: Decoding
    temperature: float
    compression_ratio: float
    is_silence: bool
    is_repetition: bool
    accepted: bool


class Transcription:
    """One recording's transcription: the options applied to a model, and what one window leaves for the next.

    Parameters
    ----------
    model, tokenizer, dims, settings
        The model.
    options : WhisperOptions
        How to transcribe.

    Raises
    ------
    InputError
        The model has not the language, the task or the tokens that an option names.

    """

    def __init__(
        self,
        model: WhisperEncoderDecoder,
        tokenizer: WhisperTokenizer,
        dims: WhisperDims,
        settings: WhisperSettings,
        options: WhisperOptions,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._dims = dims
        self._settings = settings
        self._options = options
        self.language = _language(options, settings)
        self.language_probability: float | None = None
        self._candidates = _candidates(options, settings)
        self.task = _task(options, settings)
        self._suppress = _suppressed(options, settings, dims)
        prompt = (options.initial_prompt or "").strip()
        given = tokenizer.encode_prompt(prompt) if prompt else ()
        most = dims.n_text_ctx // 2 - 1
        self._initial = given[-most:]
        self.prompt = tokenizer.decode(self._initial).strip() if prompt else None
        self.prompt_note = f"prompt cut to its last {most} of {len(given)} tokens" if len(given) > most else ""
        self._previous = deque(self._initial, maxlen=most)
        self._generator = np.random.default_rng(options.seed)
        self._words = WordTimes(model, tokenizer, settings)
        self._last_end = 0.0

    def segments(self, features: Features, on_progress: Progress | None) -> Iterator[Segment]:
        """Yield the recording's segments, times in seconds from the features' start."""
        timestamps = features.is_long or self._options.timestamps or self._options.times_words
        rules: list[Rule] = [SuppressAtBegin(self._settings.begin_suppress_tokens), SuppressTokens(self._suppress)]
        if timestamps:
            rules.append(TimestampRules(self._settings))
        seek = features.n_frames if features.is_silent else 0
        while seek < features.n_frames:
            n_frames = min(features.n_frames - seek, self._dims.n_frames)
            with self._model.timer.measure("frontend_s"):
                mel = features.window(seek)
            window = self._model.encode(mel)
            if self.language is None:
                self.language, self.language_probability = self._detected(window, features)
            judged, temperature = self._decode(window, self._prompt(timestamps=timestamps), rules)
            advance = n_frames
            if not judged.is_silence:
                tokens = judged.decoding.tokens
                if timestamps:
                    pieces, advance = cut_window(tokens, n_frames, self._settings.timestamps)
                else:
                    pieces = [Piece(0, -(-n_frames // FRAMES_PER_STEP), tokens)]
                spoken = [_spoken(piece, seek) for piece in pieces]
                if self._options.times_words:
                    stretch = Stretch(seek, n_frames, features.n_frames, self._dims.n_frames)
                    spoken, advance = self._timed(spoken, window, stretch, advance, tokens)
                self._remember(spoken, temperature)
                for found in spoken:
                    segment = self._segment(found, features.duration_s, judged)
                    if segment.text:
                        yield segment
            seek += advance
            if on_progress is not None:
                on_progress(min(seek * FRAME_S, features.duration_s), features.duration_s)

    def detected(self, features: Features) -> tuple[str, float]:
        """Return the code of the language that is spoken in a recording, "" where it is silent, and its probability."""
        if features.is_silent:
            return "", 0.0
        return self._detected(self._model.encode(features.window(0)), features)

    def _detected(self, first: Window, features: Features) -> tuple[str, float]:
        """Return the language that is spoken, from the first window and as many others as it takes."""
        windows = chain([first], map(self._model.encode, features.later_windows()))
        return spoken_language(self._model.languages(window, self._candidates) for window in windows)

    def _timed(
        self, spoken: list[Spoken], window: Window, stretch: Stretch, advance: int, tokens: Sequence[int]
    ) -> tuple[list[Spoken], int]:
        """Return a window's segments with words, and how many frames to go on by: to the last word's end."""
        self._words.add(
            spoken, window, stretch, start=self._start(), language=self.language or "", last_speech=self._last_end
        )
        silence = self._options.hallucination_silence_threshold
        if any(found.words for found in spoken) and not ends_by_itself(tokens, self._settings.timestamps):
            end = end_of(spoken)
            # Silence that is shorter than that is no reason to hear it again.
            is_heard = silence is not None and stretch.end - end <= silence
            advance = stretch.n_frames if is_heard else stretch.frames_to(end) or advance
        if silence is not None:
            leading = leading_silence(spoken, stretch)
            if leading > silence:
                return [], max(1, round(leading / FRAME_S))
            place = first_hallucination(spoken, stretch, self._last_end, silence)
            if place is not None:
                advance = frames_past(spoken[place], stretch, silence)
                spoken = spoken[:place]
        if spoken:
            self._last_end = end_of(spoken)
        return [found for found in spoken if found.start != found.end], advance

    def _prompt(self, *, timestamps: bool) -> list[int]:
        settings = self._settings
        prompt = [settings.sot_prev, *self._previous] if self._previous else []
        prompt += self._start()
        if not timestamps:
            prompt.append(settings.no_timestamps)
        return prompt

    def _start(self) -> list[int]:
        """Return the tokens of a prompt that begin a transcript of the language and task."""
        settings = self._settings
        start = [settings.sot]
        if self.language in settings.languages:
            start.append(settings.languages[self.language])
        if self.task in settings.tasks:
            start.append(settings.tasks[self.task])
        return start

    def _decode(self, window: Window, prompt: Sequence[int], rules: Sequence[Rule]) -> tuple[Judged, float]:
        """Decode at rising temperatures until a result is accepted, or choose among all; return the last one too."""
        prompted = self._model.prompted(window, prompt)
        tried = []
        for temperature in self._options.temperatures:
            sample = partial(choose, temperature=temperature, generator=self._generator)
            samples = []
            for _ in range(self._options.best_of if temperature > 0 else 1):
                decoding = self._model.decode(prompted, rules, sample, self._options.max_new_tokens)
                text = self._tokenizer.decode(decoding.tokens).strip()
                samples.append(judge(decoding, temperature, compression_ratio(text), self._options))
            judged = likeliest(samples)
            if judged.accepted:
                return judged, temperature
            tried.append(judged)
        return likeliest(tried), temperature

    def _remember(self, spoken: Sequence[Spoken], temperature: float) -> None:
        if self._options.condition_on_previous_text and temperature <= _HOT:
            self._previous.extend(token for found in spoken for token in found.tokens)
        else:
            self._previous.clear()
            self._previous.extend(self._initial)

    def _segment(self, spoken: Spoken, duration_s: float, judged: Judged) -> Segment:
        words = tuple(
            Word(word.text.strip(), min(word.start, duration_s), min(word.end, duration_s), word.probability)
            for word in spoken.words
            if word.text.strip()
        )
        return Segment(
            start=min(spoken.start, duration_s),
            end=min(spoken.end, duration_s),
            text=self._tokenizer.decode(spoken.tokens).strip(),
            tokens=spoken.tokens,
            words=words if self._options.times_words else None,
            avg_logprob=judged.decoding.avg_logprob,
            no_speech_prob=judged.decoding.no_speech_prob,
            compression_ratio=judged.compression_ratio,
            temperature=judged.temperature,
        )


def _spoken(piece: Piece, seek: int) -> Spoken:
    """Return a piece with its times in seconds from the features' start."""
    start, end = ((seek + FRAMES_PER_STEP * step) * FRAME_S for step in (piece.start, piece.end))
    return Spoken(start, end, piece.tokens)


def judge(decoding: Decoding, temperature: float, ratio: float, options: WhisperOptions) -> Judged:
    """Apply the thresholds of `options` to a decoding whose text has the compression ratio `ratio`."""
    improbable = options.logprob_threshold is not None and decoding.avg_logprob < options.logprob_threshold
    repetitive = options.compression_ratio_threshold is not None and ratio > options.compression_ratio_threshold
    is_silence = (
        options.no_speech_threshold is not None
        and decoding.no_speech_prob > options.no_speech_threshold
        and (improbable or options.logprob_threshold is None)
    )
    accepted = is_silence or not (improbable or repetitive)
    return Judged(decoding, temperature, ratio, is_silence, repetitive, accepted)


def likeliest(tried: Sequence[Judged]) -> Judged:
    """Return the result with the highest mean log-probability of those that are no repetition, of all where all are.

    A loop is always likely: whisper-base on white noise goes round in 445 tokens of -0.08.
    """
    texts = [judged for judged in tried if not judged.is_repetition]
    return max(texts or tried, key=lambda judged: judged.decoding.avg_logprob)


def _language(options: WhisperOptions, settings: WhisperSettings) -> str | None:
    """Return the code of the language to transcribe, None where it has to be detected."""
    # An English-only model has no language tokens.
    known = settings.languages or {"en": settings.sot}
    default = settings.language if settings.languages else "en"
    if options.language is None and not options.language_candidates:
        return default
    if options.language is None or options.language.strip().lower() == AUTO:
        return None if settings.languages else default
    return language_code(options.language, known, "--language")


def _candidates(options: WhisperOptions, settings: WhisperSettings) -> tuple[str, ...]:
    """Return the codes of the languages among which the spoken one is."""
    known = settings.languages or {"en": settings.sot}
    named = (language_code(name, known, "--language-candidates") for name in options.language_candidates)
    return tuple(dict.fromkeys(named)) or tuple(known)


def _task(options: WhisperOptions, settings: WhisperSettings) -> str:
    if options.task not in (None, "transcribe", *settings.tasks):
        raise InputError(f"--task {options.task}: expected transcribe, this model has no other; leave the task out")
    return options.task or settings.task


def _suppressed(options: WhisperOptions, settings: WhisperSettings, dims: WhisperDims) -> tuple[int, ...]:
    ids = settings.suppress_tokens if options.suppress_tokens is None else options.suppress_tokens
    if max(ids, default=0) >= dims.n_vocab:
        raise InputError(f"suppress_tokens: expected ids below {dims.n_vocab}, found {max(ids)}")
    return ids
