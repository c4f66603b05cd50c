"""Whisper's golden cases: which windows, prompts and positions, and what the fp32 graphs make of them.

Encoder cases are named after their window, frontend cases `<window>_audio`, decoder cases after the number of prompt
tokens (`prefill_3`) or the position of the token (`step_4`, `step_64`, `step_middle`, `step_last`), `step_prompted`
behind a prompt with earlier text. `align` goes over the text of the first window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from export.families.whisper.margins import Listening
from export.golden import Clip, Golden, segments_of
from export.recordings import read_clips
from export.registry import REPOSITORY_ROOT
from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines.base import Array, Engine, Floats
from runtime.families.whisper.options import WhisperOptions
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend, WhisperSettings
from runtime.families.whisper.tokenizer import WhisperTokenizer
from runtime.golden import filled
from runtime.manifest import TeacherForced

# Fast: a window of Whisper's has 168 tokens of it, so that its text goes far into the cache.
SPEECH_FILE = REPOSITORY_ROOT / "samples" / "fast_en.flac"
SPEECH, PADDED = "speech", "padded"
_PADDED_FILE = REPOSITORY_ROOT / "samples" / "jfk.flac"
# Positions with a case, beside the first one, the middle and the last.
_POSITIONS = (64, 128, 192)
# Said before the first recording, in a style that no model writes of itself.
_PROMPT = "the new frontier"
# What is sampled at the highest temperature is refused; the next is so low that it chooses as 0 does, but has to be
# reached. Few tokens, since each try takes as many.
_FALLBACK = {"temperatures": [10.0, 1e-3], "max_new_tokens": 40}
_SEED = 0
# Of the outputs of the cases that no decoder case reads, every n-th frame of cross_* is kept.
_CROSS_STRIDE = 16
# In the cache rows that a step must not read. Finite in fp16, and far outside of what a row holds.
_GARBAGE = 1e4
_FORCED_TOKENS = 32
# Random weights never say the end token: more tokens would only take longer.
_CUT = {"max_new_tokens": 16}


def whisper_golden(artifact: Artifact, engine: Engine, clips: Sequence[Clip], *, trained: bool) -> Golden:
    """Return golden cases, a teacher-forced run and recordings; see FamilyModel.golden.

    One graph after the other is used, and the engine's memory released between them. The teacher-forced run goes along
    the first recording, or along `SPEECH_FILE` where that is among them. Where weights are random, not trained,
    recordings are cut short, and each is heard once.
    """
    return _GoldenMaker(artifact, engine).make(clips, trained=trained)


class _GoldenMaker:
    """Adds cases to `golden`, in an order in which each finds what it reads."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        self.artifact = artifact
        self.engine = engine
        self.dims = WhisperDims.model_validate(artifact.content.dims)
        self.frontend = WhisperFrontend.model_validate(artifact.content.frontend)
        self.settings = WhisperSettings.model_validate(artifact.content.settings)
        self.text = self._transcript()
        self.golden = Golden()

    def make(self, clips: Sequence[Clip], *, trained: bool) -> Golden:
        forced = next((clip for clip in clips if clip.path.name == SPEECH_FILE.name), clips[0] if clips else None)
        forced_case = self._windows(forced)
        self.engine.close()
        self._steps()
        if forced:
            self._teacher_forced(forced, forced_case)
        self.engine.close()
        self._prefills()
        self.engine.close()
        self._aligned()
        self.engine.close()
        for clip, name, options in self._heard(clips) if trained else [(clip, None, _CUT) for clip in clips]:
            self._recording(clip, name, options)
        return self.golden

    def _windows(self, forced: Clip | None) -> str:
        """Add frontend and encoder cases; return the name of that of the first window of `forced`."""
        speech, padded = self._first_window(SPEECH_FILE), self._first_window(_PADDED_FILE)
        rng = np.random.default_rng(_SEED)
        n_samples = self.frontend.n_samples
        one_sample = np.zeros(n_samples, np.float32)
        one_sample[0] = 0.5
        padded[n_samples // 3 :] = 0
        windows: dict[str, tuple[Floats, str]] = {
            SPEECH: (speech, "fast speech over the whole window"),
            PADDED: (padded, "speech in a third of the window, then padding"),
            "silence": (np.zeros(n_samples, np.float32), "zeros"),
            "noise": (0.1 * rng.standard_normal(n_samples, dtype=np.float32), "white noise"),
            "one_sample": (one_sample, "the shortest recording: one sample, then padding"),
        }
        forced_case = SPEECH
        if forced and forced.path.name != SPEECH_FILE.name:
            forced_case = f"{forced.path.stem}_window"
            windows[forced_case] = (self._first_window(forced.path), f"first window of {forced.path.name}")
        mels = {}
        for name, (audio, note) in windows.items():
            outputs = self.engine.run("frontend", {"audio": audio[None]})
            real = name in {SPEECH, PADDED, forced_case}
            self.golden.add_case(f"{name}_audio", "frontend", note, {"audio": audio[None]}, outputs, real=real)
            mels[name] = outputs["mel"]
        for name, mel in mels.items():
            outputs = self.engine.run("encoder", {"mel": mel})
            read_later = name in {SPEECH, forced_case}
            strides = {tensor: 1 if read_later or tensor == "hidden" else _CROSS_STRIDE for tensor in outputs}
            note = windows[name][1]
            inputs = {"mel": f"{name}_audio/mel"}
            real = read_later or name == PADDED
            self.golden.add_case(name, "encoder", note, inputs, outputs, strides=strides, real=real)
        return forced_case

    def _transcript(self) -> list[int]:
        """Return the tokens of what is said in `SPEECH_FILE`."""
        (clip,) = read_clips([SPEECH_FILE])
        tokenizer = WhisperTokenizer(self.artifact.file(self.settings.tokenizer_file), self.settings.special)
        return list(tokenizer.encode_prompt((clip.reference or {})["text"]))

    def _steps(self) -> None:
        """Add steps along the text of `SPEECH`, over and over, at several positions.

        The cache's rows are those of one call of the longest prefill, and behind them the same again: decoding up to
        the last position token by token took more than half of all that is done here.
        """
        last = self.dims.n_text_ctx - 1
        at = {4: "step_4", **{position: f"step_{position}" for position in _POSITIONS}}
        at |= {self.dims.n_text_ctx // 2: "step_middle", last: "step_last"}
        prompt = self._prompt(min(4, last))
        tokens = [*prompt, *islice(cycle(self.text), last + 1 - len(prompt))]
        longest = self.dims.prefill_lengths[-1]
        rows = self._prefill(longest, tokens[:longest])[1]
        self.engine.close()
        for position, name in sorted(at.items()):
            if len(prompt) <= position <= last:
                places = np.arange(position) % longest
                cache = {tensor: rows[f"new_{tensor}"][:, :, places] for tensor in self.cache_inputs}
                # A step is one row. Of a correct fp16 of whisper-base one at 128 is 2.5 % off, so the limit of ports,
                # which no floor moves, is for the first; the others have theirs from floors.
                self._step(name, position, tokens[position], cache, real=position == len(prompt))

    def _step(self, name: str, position: int, token: int, cache: Mapping[str, Array], *, real: bool) -> None:
        """Add a step case: `cache` has the rows before `position`."""
        specs = {spec.name: spec for spec in self.artifact.content.graphs["step"].inputs}
        given = {"tokens": np.array([[token]], np.int64), "pos": np.array([position], np.int64)}
        whole = {tensor: filled(rows, specs[tensor], _GARBAGE) for tensor, rows in cache.items()}
        outputs = self.engine.run("step", {**given, **self.cross(SPEECH), **whole})
        note = f"position {position}; cache rows from there on hold {_GARBAGE:g}"
        inputs: dict[str, Array | str] = {**given, **self.cross_keys(SPEECH), **cache}
        fills = dict.fromkeys(cache, _GARBAGE)
        self.golden.add_case(name, "step", note, inputs, outputs, fills=fills, real=real)

    def _prefills(self) -> None:
        """Add a case for one and three tokens, and one per prompt length: padded, but for the first and the longest.

        Earlier text is that of `SPEECH`, over and over. A step follows on the longest padded prompt.
        """
        lengths = self.dims.prefill_lengths
        counts = [1, 3, lengths[0], *(count * 3 // 4 for count in lengths[1:-1]), lengths[-1]]
        for count in counts:
            length = next(length for length in lengths if length >= count)
            prompt = self._prompt(count)
            given, outputs = self._prefill(length, prompt)
            padding = f", {length - count} of padding" if length > count else ""
            note = f"{count} prompt tokens{padding}"
            inputs: dict[str, Array | str] = {**given, **self.cross_keys(SPEECH)}
            # Nobody goes over and over the same text; and one token is one row, as a step is.
            real = prompt[0] == self.settings.sot and count > 1
            self.golden.add_case(f"prefill_{count}", f"prefill_{length}", note, inputs, outputs, real=real)
        self.engine.close()
        # The step behind the prompt of a prefill case, by the rows that this wrote.
        prefill, position = f"prefill_{counts[-2]}", counts[-2]
        arrays = self.golden.arrays
        cache = {tensor: arrays[f"{prefill}/new_{tensor}"][:, :, :position] for tensor in self.cache_inputs}
        self._step("step_prompted", position, self._next(arrays[f"{prefill}/logits"][0, 1]), cache, real=False)

    def _aligned(self) -> None:
        """Add a case for the text of `SPEECH`, as words are timed: without times, padded with end tokens."""
        prompt = self._prompt(4)
        text = self.text[: self.dims.n_text_ctx - len(prompt)]
        tokens = np.full((1, self.dims.n_text_ctx), self.settings.eot, np.int64)
        tokens[0, : len(prompt) + len(text)] = [*prompt, *text]
        outputs = self.engine.run("align", {"tokens": tokens, **self.cross(SPEECH)})
        inputs: dict[str, Array | str] = {"tokens": tokens, **self.cross_keys(SPEECH)}
        note = f"{len(text)} tokens of text, teacher-forced"
        self.golden.add_case("align", "align", note, inputs, outputs, strides={"scores": _CROSS_STRIDE})

    def _prefill(self, length: int, tokens: Sequence[int]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run a prefill on tokens with a start-of-transcript; return what it was given, and its outputs."""
        padded = np.full((1, length), self.settings.eot, np.int64)
        padded[0, : len(tokens)] = tokens
        rows = np.array([tokens.index(self.settings.sot), len(tokens) - 1], np.int64)
        given: dict[str, Array] = {"tokens": padded, "rows": rows}
        return given, self.engine.run(f"prefill_{length}", {**given, **self.cross(SPEECH)})

    def _next(self, logits: Floats) -> int:
        """Return the greedy choice of those tokens that the checkpoint does not suppress."""
        allowed = logits.copy()
        allowed[list(self.settings.suppress_tokens)] = -np.inf
        return int(allowed.argmax())

    def _teacher_forced(self, clip: Clip, case: str) -> None:
        """Add logits along the greedy text of a recording's first window."""
        prompt = self._prompt(4)
        decoding = _Decoding(self, case, prompt)
        tokens, logits = list(prompt), []
        room = min(_FORCED_TOKENS, self.dims.n_text_ctx - len(prompt))
        while True:
            logits.append(decoding.logits)
            token = self._next(decoding.logits)
            tokens.append(token)
            if token == self.settings.eot or len(logits) == room:
                break
            decoding.step(token)
        name = f"forced_{clip.path.stem}"
        run = TeacherForced(
            name=name,
            encoder_case=case,
            tokens=tuple(tokens),
            prompt=len(prompt),
            logits=f"{name}/logits",
            heads={"tokens": (0, self.dims.n_vocab)},
        )
        self.golden.add_teacher_forced(run, np.stack(logits))

    def _heard(self, clips: Sequence[Clip]) -> Iterator[tuple[Clip, str | None, dict[str, Any]]]:
        """Yield recordings with name and options.

        Those of the registry's trained models, `SPEECH_FILE` among them, are heard with other options too: the first
        with a prompt, with times and at another temperature than the first that is tried, and translated the first
        that is not English; what is said in it is no translation.
        """
        for clip in clips:
            yield clip, None, {}
        if all(clip.path.name != SPEECH_FILE.name for clip in clips):
            return
        first = clips[0]
        yield first, f"{first.path.stem}_prompt", {"initial_prompt": _PROMPT}
        yield first, f"{first.path.stem}_timestamps", {"timestamps": True}
        yield first, f"{first.path.stem}_fallback", _FALLBACK
        foreign = [clip for clip in clips if (clip.reference or {}).get("language") not in {None, "en"}]
        for clip in foreign[:1] if self.settings.tasks else ():
            yield replace(clip, reference=None), f"{clip.path.stem}_translate", {"task": "translate"}

    def _recording(self, clip: Clip, name: str | None, options: Mapping[str, Any]) -> None:
        # Greedy alone: sampled text says nothing about a port. All of the recording, as the source hears it.
        options = {"temperatures": [0.0], "vad": False, **options}
        if clip.reference and clip.reference.get("text") == "":
            # Every text is less likely than that: the no-speech probability alone decides.
            options["logprob_threshold"] = 0.0
        recognizer = Listening(self.artifact, self.engine)
        transcript = recognizer.recognize(open_audio(clip.path), WhisperOptions.parse(options))
        segments = segments_of(transcript, "avg_logprob", "no_speech_prob", "compression_ratio", "temperature")
        result = {"text": transcript.text, "language": transcript.language, "segments": segments}
        margins = recognizer.decoder.margins_of([segment["tokens"] for segment in segments])
        self.golden.add_recording(clip, options, result, name=name, margins={"tokens": margins} if margins else None)

    def _prompt(self, count: int) -> list[int]:
        """Return `count` prompt tokens: of the usual prompt the first ones, or earlier text and all of it."""
        settings = self.settings
        start = [settings.sot]
        if settings.languages:
            start += [settings.languages.get("en", min(settings.languages.values())), settings.tasks["transcribe"]]
        start.append(settings.no_timestamps)
        if count <= len(start):
            return start[:count]
        text = islice(cycle(self.text), count - len(start) - 1)
        return [settings.sot_prev, *text, *start]

    def _first_window(self, path: Path) -> Floats:
        """Return as many samples of a recording as a window has, padded with zeros."""
        window: Floats = np.zeros(self.frontend.n_samples, np.float32)
        filled = 0
        for block in open_audio(path).blocks(self.frontend.sample_rate):
            part = block[: len(window) - filled]
            window[filled : filled + len(part)] = part
            filled += len(part)
            if filled == len(window):
                break
        return window

    @property
    def cache_inputs(self) -> list[str]:
        """The step graph's inputs that are its cache."""
        return [f"self_{kind}_{layer}" for layer in range(self.dims.n_text_layer) for kind in "kv"]

    def cross_keys(self, case: str) -> dict[str, str]:
        """Return the golden keys of an encoder case's cross_*, which decoder cases read."""
        kinds = chain.from_iterable((f"cross_k_{i}", f"cross_v_{i}") for i in range(self.dims.n_text_layer))
        return {name: f"{case}/{name}" for name in kinds}

    def cross(self, case: str) -> dict[str, Array]:
        """Return an encoder case's cross_*."""
        return {name: self.golden.arrays[key] for name, key in self.cross_keys(case).items()}


class _Decoding:
    """A kv cache that grows by a token at a time; `logits` [V] are those after the last, before `position`."""

    def __init__(self, maker: _GoldenMaker, case: str, prompt: list[int]) -> None:
        dims = maker.dims
        shape = (1, dims.n_text_head, dims.n_text_ctx, dims.head_dim)
        self.cache: dict[str, Array] = {name: np.zeros(shape, np.float32) for name in maker.cache_inputs}
        self._call = maker.engine.bind("step", {**maker.cross(case), **self.cache})
        self.position = 0
        self.logits: Floats
        for token in prompt:
            self.step(token)

    def step(self, token: int) -> None:
        """Decode one token."""
        outputs = self._call({"tokens": np.array([[token]], np.int64), "pos": np.array([self.position], np.int64)})
        for name, rows in self.cache.items():
            rows[:, :, self.position] = outputs[f"new_{name}"][:, :, 0]
        self.position += 1
        self.logits = outputs["logits"][0, 0].copy()  # the next call overwrites what this one returned
