"""Whisper's golden cases: which windows, prompts and positions, and what the fp32 graphs make of them.

Encoder cases are named after their window, frontend cases `<window>_audio`, decoder cases after the number of prompt
tokens (`prefill_3`) or the position of the token (`step_4`, `step_middle`, `step_last`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from export.golden import Clip, Golden, segments_of
from export.registry import REPOSITORY_ROOT
from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines.base import Array, Engine, Floats
from runtime.families.whisper.encoder_decoder import Decoding, Prompted, WhisperEncoderDecoder
from runtime.families.whisper.options import WhisperOptions
from runtime.families.whisper.recognizer import WhisperRecognizer
from runtime.families.whisper.rules import Rule
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend, WhisperSettings
from runtime.manifest import Graph, TeacherForced

SPEECH_FILE = REPOSITORY_ROOT / "samples" / "jfk.flac"
SPEECH = "speech"
_SEED = 0
# Of the outputs of the cases that no decoder case reads, every n-th frame of cross_* is kept.
_CROSS_STRIDE = 16
# In the cache rows that a step must not read. Finite in fp16, and far outside of what a row holds.
_GARBAGE = 1e4
_FORCED_TOKENS = 32
# Random weights never say the end token: more tokens would only take longer.
_RANDOM_TOKENS = 16


def whisper_golden(artifact: Artifact, engine: Engine, clips: Sequence[Clip], *, trained: bool) -> Golden:
    """Return golden cases, a teacher-forced run and recordings.

    Parameters
    ----------
    artifact : Artifact
        With fp32 graphs; the rest of it may be unfinished.
    engine : Engine
        Its graphs. One graph after the other is used, and the engine's memory released between them.
    clips : Sequence[Clip]
        Recordings; the first is also used for the teacher-forced run.
    trained : bool
        False for random weights: recordings are then cut short.

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
        self.golden = Golden()

    def make(self, clips: Sequence[Clip], *, trained: bool) -> Golden:
        forced_case = self._windows(clips)
        self.engine.close()
        self._prefills()
        self.engine.close()
        self._steps()
        if clips:
            self._teacher_forced(clips[0], forced_case)
        self.engine.close()
        for clip in clips:
            self._recording(clip, {} if trained else {"max_new_tokens": _RANDOM_TOKENS})
        return self.golden

    def _windows(self, clips: Sequence[Clip]) -> str:
        """Add frontend and encoder cases; return the name of that of the first recording's first window."""
        speech = self._first_window(SPEECH_FILE)
        rng = np.random.default_rng(_SEED)
        n_samples = self.frontend.n_samples
        one_sample = np.zeros(n_samples, np.float32)
        one_sample[0] = 0.5
        windows: dict[str, tuple[Floats, str]] = {
            SPEECH: (speech, "real speech, padded with silence where it ends"),
            "silence": (np.zeros(n_samples, np.float32), "zeros"),
            "noise": (0.1 * rng.standard_normal(n_samples, dtype=np.float32), "white noise"),
            "one_sample": (one_sample, "the shortest recording: one sample, then padding"),
            "full_window": (self._full_window(), "speech over the whole window, no padding"),
        }
        forced_case = SPEECH
        if clips and clips[0].path.name != SPEECH_FILE.name:
            forced_case = f"{clips[0].path.stem}_window"
            windows[forced_case] = (self._first_window(clips[0].path), f"first window of {clips[0].path.name}")
        mels = {}
        for name, (audio, note) in windows.items():
            outputs = self.engine.run("frontend", {"audio": audio[None]})
            real = name in {SPEECH, forced_case}
            self.golden.add_case(f"{name}_audio", "frontend", note, {"audio": audio[None]}, outputs, real=real)
            mels[name] = outputs["mel"]
        for name, mel in mels.items():
            outputs = self.engine.run("encoder", {"mel": mel})
            read_later = name in {SPEECH, forced_case}
            strides = {tensor: 1 if read_later or tensor == "hidden" else _CROSS_STRIDE for tensor in outputs}
            note = windows[name][1]
            inputs = {"mel": f"{name}_audio/mel"}
            self.golden.add_case(name, "encoder", note, inputs, outputs, strides=strides, real=read_later)
        return forced_case

    def _prefills(self) -> None:
        """Add a case for one and three tokens, and one per prompt length: padded, but for the first and the longest."""
        lengths = self.dims.prefill_lengths
        counts = [1, 3, lengths[0], *(count * 3 // 4 for count in lengths[1:-1]), lengths[-1]]
        for count in counts:
            length = next(length for length in lengths if length >= count)
            prompt = self._prompt(count)
            tokens = np.full((1, length), self.settings.eot, np.int64)
            tokens[0, :count] = prompt
            rows = np.array([prompt.index(self.settings.sot), count - 1], np.int64)
            outputs = self.engine.run(f"prefill_{length}", {"tokens": tokens, "rows": rows, **self.cross(SPEECH)})
            inputs: dict[str, Array | str] = {"tokens": tokens, "rows": rows, **self.cross_keys(SPEECH)}
            padding = f", {length - count} of padding" if length > count else ""
            note = f"{count} prompt tokens{padding}"
            # A longer prompt begins with tokens that nobody said.
            real = prompt[0] == self.settings.sot
            self.golden.add_case(f"prefill_{count}", f"prefill_{length}", note, inputs, outputs, real=real)

    def _steps(self) -> None:
        """Add steps at position 4, in the middle and at the last position, after greedily decoded tokens."""
        last = self.dims.n_text_ctx - 1
        at = {4: "step_4", self.dims.n_text_ctx // 2: "step_middle", last: "step_last"}
        prompt = self._prompt(min(4, last))
        decoding = _Decoding(self, SPEECH, prompt)
        for position in range(len(prompt), last + 1):
            # End token, special tokens and timestamps are left out: the text goes on to the last position.
            token = int(decoding.logits[: self.settings.eot].argmax())
            cache = (
                {name: rows[:, :, :position].copy() for name, rows in decoding.cache.items()} if position in at else {}
            )
            outputs = decoding.step(token)
            if position not in at:
                continue
            inputs: dict[str, Array | str] = {
                "tokens": np.array([[token]], np.int64),
                "pos": np.array([position], np.int64),
                **self.cross_keys(SPEECH),
                **cache,
            }
            note = f"position {position}; cache rows from there on hold {_GARBAGE:g}"
            fills = dict.fromkeys(cache, _GARBAGE)
            # Later ones are beyond the end of what is said.
            real = position == len(prompt)
            self.golden.add_case(at[position], "step", note, inputs, outputs, fills=fills, real=real)

    def _teacher_forced(self, clip: Clip, case: str) -> None:
        """Add logits along the greedy text of a recording's first window."""
        prompt = self._prompt(4)
        decoding = _Decoding(self, case, prompt)
        tokens, logits = list(prompt), []
        room = min(_FORCED_TOKENS, self.dims.n_text_ctx - len(prompt))
        while True:
            logits.append(decoding.logits)
            allowed = decoding.logits.copy()
            allowed[list(self.settings.suppress_tokens)] = -np.inf
            token = int(allowed.argmax())
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

    def _recording(self, clip: Clip, options: dict[str, Any]) -> None:
        # Greedy alone: sampled text says nothing about a port. All of the recording, as the source hears it.
        options = {"temperatures": [0.0], "vad": False, **options}
        if clip.reference and clip.reference.get("text") == "":
            # Every text is less likely than that: the no-speech probability alone decides.
            options["logprob_threshold"] = 0.0
        recognizer = _Listening(self.artifact, self.engine)
        transcript = recognizer.recognize(open_audio(clip.path), WhisperOptions.parse(options))
        segments = segments_of(transcript, "avg_logprob", "no_speech_prob", "compression_ratio", "temperature")
        result = {"text": transcript.text, "language": transcript.language, "segments": segments}
        tokens = [token for segment in segments for token in segment["tokens"]]
        self.golden.add_recording(
            clip, options, result, margins=recognizer.decoder.margins_of(tokens, self.settings.special)
        )

    def _prompt(self, count: int) -> list[int]:
        """Return `count` prompt tokens: of the usual prompt the first ones, or earlier text and all of it."""
        settings = self.settings
        start = [settings.sot]
        if settings.languages:
            start += [settings.languages.get("en", min(settings.languages.values())), settings.tasks["transcribe"]]
        start.append(settings.no_timestamps)
        if count <= len(start):
            return start[:count]
        text = np.random.default_rng(count).integers(0, settings.eot, count - len(start) - 1)
        return [settings.sot_prev, *(int(token) for token in text), *start]

    def _first_window(self, path: Path) -> Floats:
        """Return the first n_samples samples, padded with zeros."""
        audio = self._samples(path)[: self.frontend.n_samples]
        return np.pad(audio, (0, self.frontend.n_samples - len(audio)))

    def _full_window(self) -> Floats:
        """Return real speech from the middle of the recording on, from its start again where it ends."""
        audio = self._samples(SPEECH_FILE)
        return np.resize(np.roll(audio, -(len(audio) // 2)), self.frontend.n_samples)

    def _samples(self, path: Path) -> Floats:
        """Return as much of a recording as fills a window, and again as much."""
        blocks, wanted = [], 2 * self.frontend.n_samples
        for block in open_audio(path).blocks(self.frontend.sample_rate):
            blocks.append(block)
            if sum(map(len, blocks)) >= wanted:
                break
        return np.concatenate(blocks)[:wanted]

    def cross_keys(self, case: str) -> dict[str, str]:
        """Return the golden keys of an encoder case's cross_*, which decoder cases read."""
        kinds = chain.from_iterable((f"cross_k_{i}", f"cross_v_{i}") for i in range(self.dims.n_text_layer))
        return {name: f"{case}/{name}" for name in kinds}

    def cross(self, case: str) -> dict[str, Array]:
        """Return an encoder case's cross_*."""
        return {name: self.golden.arrays[key] for name, key in self.cross_keys(case).items()}


class _Decoding:
    """A kv cache that grows by a token at a time; `logits` [V] are those after the last one."""

    def __init__(self, maker: _GoldenMaker, case: str, prompt: list[int]) -> None:
        dims = maker.dims
        shape = (1, dims.n_text_head, dims.n_text_ctx, dims.head_dim)
        kinds = chain.from_iterable((f"self_k_{i}", f"self_v_{i}") for i in range(dims.n_text_layer))
        self.cache: dict[str, Array] = {name: np.zeros(shape, np.float32) for name in kinds}
        self._call = maker.engine.bind("step", {**maker.cross(case), **self.cache})
        self._position = 0
        self.logits: Floats
        for token in prompt:
            self.step(token)

    def step(self, token: int) -> dict[str, Array]:
        """Decode one token; return the step graph's outputs."""
        outputs = self._call({"tokens": np.array([[token]], np.int64), "pos": np.array([self._position], np.int64)})
        # The next call overwrites what this one returned.
        outputs = {name: array.copy() for name, array in outputs.items()}
        for name, rows in self.cache.items():
            rows[:, :, self._position] = outputs[f"new_{name}"][:, :, 0]
        self._position += 1
        self.logits = outputs["logits"][0, 0]
        return outputs


class _Listening(WhisperRecognizer):
    """The recogniser that users run; its decoder remembers how near its choices were."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        super().__init__(artifact, engine)
        self._model = self.decoder = _Remembering(engine, artifact.content.graphs, self.dims, self.settings)


class _Remembering(WhisperEncoderDecoder):
    """Keeps of each window its tokens, and the margins of their choices and of the end's."""

    def __init__(
        self, engine: Engine, graphs: Mapping[str, Graph], dims: WhisperDims, settings: WhisperSettings
    ) -> None:
        super().__init__(engine, graphs, dims, settings)
        self._windows: list[tuple[tuple[int, ...], list[float]]] = []

    def decode(
        self,
        prompted: Prompted,
        rules: Sequence[Rule],
        choose: Callable[[Floats], tuple[int, float]],
        max_new_tokens: int | None = None,
    ) -> Decoding:
        """Decode one window; see `WhisperEncoderDecoder`."""
        margins: list[float] = []

        def remembering(logits: Floats) -> tuple[int, float]:
            second, best = np.partition(logits, -2)[-2:]
            # The rules may leave one candidate.
            margins.append(float(best - second) if np.isfinite(second) else float(np.finfo(np.float32).max))
            return choose(logits)

        decoding = super().decode(prompted, rules, remembering, max_new_tokens)
        self._windows.append((decoding.tokens, margins))
        return decoding

    def margins_of(self, tokens: Sequence[int], special: Container[int]) -> tuple[float, ...] | None:
        """Return the margin of each token that is not `special`, and of the end.

        A window's first token may be the end of the one before, whose choice counts too. None where `tokens` are not
        those of the windows, all of them.
        """
        if list(tokens) != list(chain.from_iterable(own for own, _ in self._windows)):
            return None
        found: list[float] = []
        ended = float(np.finfo(np.float32).max)
        for own, margins in self._windows:
            for token, margin in zip(own, margins, strict=False):  # the end's may be the last
                if token not in special:
                    found.append(min(ended, margin))
                    ended = float(np.finfo(np.float32).max)
            ended = min(ended, margins[-1])
        return (*found, ended)
