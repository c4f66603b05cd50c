"""Granite Speech's golden cases: sounds of several lengths, prompts, positions of the cache, and recordings.

Cases of encode_project are named after their sound, `recording_<name>` after a recording; the others begin with the
graph's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.families.granite_speech.margins import Listening
from export.golden import Clip, Golden, read_samples, segments_of
from export.registry import REPOSITORY_ROOT
from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines.base import Array, Engine, Floats
from runtime.families.granite_speech.features import log_mel, n_frames
from runtime.families.granite_speech.options import GraniteOptions
from runtime.families.granite_speech.prompts import instruction, prompt_text
from runtime.families.granite_speech.settings import (
    DECODE,
    EMBED,
    ENCODE_PROJECT,
    PREFILL,
    GraniteDims,
    GraniteFrontend,
    GraniteSettings,
    bucket,
)
from runtime.families.granite_speech.tokenizer import GraniteTokenizer
from runtime.manifest import TeacherForced

_SPEECH, _ODD, _RECORDING = "speech", "odd", "recording_"
_SPEECH_FILE = REPOSITORY_ROOT / "samples" / "jfk.flac"
_SPEECH_S = 3
# The longest recording with an encoder case: what is heard as one chunk.
_WHOLE_S = 30
_SEED = 0
# Added to speech, at -80 dB of full scale: where a recording has nothing at all no two engines agree.
_NOISE = np.float32(1e-4)
# What stands beyond a recording's end and behind a prompt, which no graph may mix in.
_GARBAGE = np.float32(3.0)
# In the cache rows that decode must not read. Finite in fp16, and far outside of what a row holds.
_CACHE_GARBAGE = 1e4
# Rows of a cache are a multiple of this with those that must not be read (runtime/golden.py).
_CACHE_ROWS = 64
# Of a wide encoder's outputs every n-th row is kept: 7 meets every place within a block of 200 and a window of 15.
_WIDE, _STRIDE = 2e5, 7
# At most so many tokens along a text, fewer where a vocabulary is large: a row of 100353 logits has 0.4 MB.
_FORCED_TOKENS, _FORCED_BYTES = 32, 5e6
# Random weights never say the end token: more tokens would only take longer.
_RANDOM_TOKENS = 16
# They choose among near equals: where the two best are closer than this, in standard deviations of the logits, rounding
# to a lower precision may choose otherwise.
_NEAR = 0.06
_TRANSLATE: dict[str, Any] = {"task": "translate", "to": "French", "punctuation": True}
# How trained weights hear the shortest recording too, and in chunks.
_OTHERWISE: dict[str, dict[str, Any]] = {
    "keywords": {"keywords": ["Americans", "country"], "max_new_tokens": 48},
    "prompt": {"prompt": "what does the speaker ask for?", "max_new_tokens": 48},
}
_CHUNKS, _LONGEST_CHUNK_S = 3, 20.0


def granite_golden(artifact: Artifact, engine: Engine, clips: Sequence[Clip], *, trained: bool) -> Golden:
    """Return golden cases, teacher-forced runs and recordings; see FamilyModel.golden.

    One graph after the other is used, and the engine's memory released between them. The first recording is also
    translated. Trained weights hear the shortest one with more options; where they are random, recordings are cut
    short.
    """
    maker = _GoldenMaker(artifact, engine)
    maker.sounds()
    maker.recordings(clips)
    engine.close()
    maker.prompts()
    engine.close()
    maker.steps()
    maker.teacher_forced()
    engine.close()
    maker.transcripts(clips, trained=trained)
    return maker.golden


class _GoldenMaker:
    """Adds cases to `golden`, in an order in which each finds what it reads."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        self.artifact = artifact
        self.engine = engine
        self.dims = artifact.part("dims", GraniteDims)
        self.frontend = artifact.part("frontend", GraniteFrontend)
        self.settings = artifact.part("settings", GraniteSettings)
        self.tokenizer = GraniteTokenizer(
            artifact.file(self.settings.tokenizer_file), self.dims.n_vocab, self.settings.audio_token
        )
        self.golden = Golden()

    def sounds(self) -> None:
        """Add encode_project cases of sounds that every artifact has."""
        rate, unit = self.frontend.sample_rate, self.dims.unit
        rng = np.random.default_rng(_SEED)
        speech = read_samples(_SPEECH_FILE, rate)
        speech += _NOISE * rng.standard_normal(len(speech), dtype=np.float32)
        # Twelve seconds of a network of full size and more: the recording once again where it ends.
        features = self._features(np.resize(speech, (2 * unit + 2) * self.frontend.hop_length))
        second = n_frames(rate, self.frontend)
        odd = features[: self._odd(second)]
        white = 0.1 * rng.standard_normal(rate, dtype=np.float32)
        self._sound(
            _SPEECH, f"{_SPEECH_S} s of real speech, with faint noise", self._features(speech[: _SPEECH_S * rate])
        )
        self._sound("silence", "a second of zeros", self._features(np.zeros(rate, np.float32)))
        self._sound("noise", "a second of white noise", self._features(white))
        self._sound("shortest", "the shortest recording: one frame", features[second : second + 1])
        self._sound(_ODD, "real speech; neither a whole block nor a whole window", odd)
        self._sound("unit", f"real speech of {unit} frames, no padding", features[:unit])
        self._sound("unit_and_one", f"real speech of {unit} frames and one more", features[: unit + 1])
        self._sound("garbage", f"as {_ODD}, with {_GARBAGE} beyond its end", odd, float(_GARBAGE))

    def recordings(self, clips: Sequence[Clip]) -> None:
        """Add an encode_project case for each recording that is heard as one chunk."""
        rate = self.frontend.sample_rate
        for clip in clips:
            audio = read_samples(clip.path, rate)
            if len(audio) <= _WHOLE_S * rate:
                self._sound(f"{_RECORDING}{clip.path.stem}", f"the whole of {clip.path.name}", self._features(audio))

    def prompts(self) -> None:
        """Add cases of embed and prefill: a prompt with speech in it, the same padded, and the shortest."""
        prompt = self._prompt(_SPEECH, GraniteOptions())
        tokens = self._embedded(prompt)[None]
        self._case("embed_prompt", EMBED, "the prompt; id 0 where audio comes", {"tokens": tokens})
        rows = self._spliced(_SPEECH, prompt)
        self._prefill("prefill_speech", "a prompt with speech in it", rows)
        self._prefill("prefill_shortest", "one token", rows[:, :1])
        full = np.resize(rows, (1, _CACHE_ROWS - 1, self.dims.lm_dim))
        self._prefill("prefill_full", "as many as leave one row of a cache", full)
        size = bucket(len(prompt) + 1, self.settings.prefill_lengths)
        padded = np.full((1, size, self.dims.lm_dim), _GARBAGE)
        padded[:, : len(prompt)] = rows
        inputs: dict[str, Array | str] = {"embeds": padded, "length": np.array([len(prompt)])}
        note = f"the prompt with {size - len(prompt)} rows of {_GARBAGE} behind it"
        self._case("prefill_padded", PREFILL, note, inputs, outputs=("logits",))

    def steps(self) -> None:
        """Add cases of decode at the first position, after the prompt, and with one cache row that is not read."""
        for name, after in (("first", "shortest"), ("middle", _SPEECH), ("last", "full")):
            logits, k = (self.golden.arrays[f"prefill_{after}/{part}"] for part in ("logits", "new_k"))
            note = f"position {k.shape[2]}; cache rows from there on hold {_CACHE_GARBAGE:g}"
            inputs: dict[str, Array | str] = {
                "tokens": self._embedded(logits.argmax(axis=1))[None],
                "pos": np.array([k.shape[2]]),
                "k": f"prefill_{after}/new_k",
                "v": f"prefill_{after}/new_v",
            }
            fills = dict.fromkeys("kv", _CACHE_GARBAGE)
            self._case(f"decode_{name}", DECODE, note, inputs, fills=fills, real=after == _SPEECH)

    def teacher_forced(self) -> None:
        """Add logits along the greedy texts of two sounds and two kinds of prompt."""
        most = min(_FORCED_TOKENS, int(_FORCED_BYTES // (4 * self.dims.n_vocab)))
        for sound, options in ((_SPEECH, {}), (_ODD, _TRANSLATE)):
            parsed = GraniteOptions.parse(options)
            prompt = self._prompt(sound, parsed)
            tokens, logits = self._greedy(sound, prompt, most)
            name = f"forced_{parsed.task}"
            run = TeacherForced(
                name=name,
                encoder_case=sound,
                tokens=(*prompt, *tokens),
                prompt=len(prompt),
                logits=f"{name}/logits",
                heads={"tokens": (0, self.dims.n_vocab)},
            )
            self.golden.add_teacher_forced(run, np.stack(logits))

    def transcripts(self, clips: Sequence[Clip], *, trained: bool) -> None:
        """Add what the recogniser hears in each recording, how it translates the first, and what else it is asked.

        Of random weights, texts whose first token depends on rounding are left out.
        """
        heard: list[tuple[Clip, str, dict[str, Any]]] = [(clip, clip.path.stem, {}) for clip in clips]
        # What a person says is in it is no translation.
        heard += [(replace(clip, reference=None), f"{clip.path.stem}_translate", _TRANSLATE) for clip in clips[:1]]
        heard += _otherwise(clips) if trained else []
        recognizer = Listening(self.artifact, self.engine)
        for clip, name, wanted in heard:
            options = {**wanted, "vad": False}  # all of the recording, as the source hears it
            if not trained:
                count = self._clear_tokens(clip, GraniteOptions.parse(wanted))
                if not count:
                    continue
                options |= {"max_new_tokens": count, "repetition_guard": False}
            recognizer.language_model.answers.clear()
            found = recognizer.recognize(open_audio(clip.path), GraniteOptions.parse(options))
            result: dict[str, Any] = {
                "text": found.text,
                "language": found.language,
                "segments": segments_of(found, "avg_logprob", "finish", "draft"),
            }
            margins = recognizer.language_model.margins_of(result["segments"])
            self.golden.add_recording(clip, options, result, name=name, margins={"tokens": margins})

    def _clear_tokens(self, clip: Clip, options: GraniteOptions) -> int:
        """Return how many tokens of a text do not depend on rounding, of a recording that has an encoder case."""
        sound = f"{_RECORDING}{clip.path.stem}"
        if f"{sound}/features" not in self.golden.arrays:
            return _RANDOM_TOKENS
        _, logits = self._greedy(sound, self._prompt(sound, options), _RANDOM_TOKENS)
        best = np.sort(np.stack(logits), axis=1)[:, -2:]
        near = best[:, 1] - best[:, 0] < _NEAR * np.std(logits, axis=1)
        return int(near.argmax()) if near.any() else len(logits)

    def _greedy(self, sound: str, prompt: Sequence[int], most: int) -> tuple[list[int], list[Floats]]:
        """Return the greedy tokens after a prompt, to the end token, and the logits [V] that each is chosen by."""
        room = min(most, self.dims.n_ctx - len(prompt))
        rows = self._spliced(sound, prompt)
        outputs = self.engine.run(PREFILL, {"embeds": rows, "length": np.array([len(prompt)])})
        cache: dict[str, Array] = {name: outputs[f"new_{name}"] for name in "kv"}
        tokens: list[int] = []
        logits: list[Floats] = []
        while True:
            logits.append(outputs["logits"][0])
            tokens.append(int(logits[-1].argmax()))
            if tokens[-1] in self.settings.eos or len(tokens) >= room:
                return tokens, logits
            inputs = {"tokens": self._embedded(tokens[-1:])[None], "pos": np.array([len(prompt) + len(tokens) - 1])}
            outputs = self.engine.run(DECODE, {**inputs, **cache})
            cache = {name: np.concatenate([cache[name], outputs[f"new_{name}"]], axis=2) for name in "kv"}

    def _prompt(self, sound: str, options: GraniteOptions) -> tuple[int, ...]:
        """Return the ids of a prompt with a sound in it."""
        embeds = self.dims.n_embeds(int(self.golden.arrays[f"{sound}/length"][0]))
        return self.tokenizer.encode_prompt(prompt_text(instruction(options), embeds, self.settings))

    def _spliced(self, sound: str, prompt: Sequence[int]) -> Floats:
        """Return the embeddings [1, n_prompt, lm_dim] of a prompt, those of the sound where audio ids are."""
        rows: Floats = self.engine.run(EMBED, {"tokens": self._embedded(prompt)[None]})["embeds"].copy()
        audio = np.array(prompt) == self.settings.audio_token
        rows[0, audio] = self.golden.arrays[f"{sound}/audio_embeds"].reshape(-1, self.dims.lm_dim)[: audio.sum()]
        return rows

    def _embedded(self, tokens: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids whose embeddings are taken: 0 for the audio token, as in transformers."""
        ids: NDArray[np.int64] = np.array(tokens, np.int64)
        ids[ids == self.settings.audio_token] = 0
        return ids

    def _features(self, audio: Floats) -> Floats:
        return log_mel(audio, self.frontend)

    def _odd(self, frames: int) -> int:
        """Return the first length from `frames` on that is neither a whole number of blocks nor of windows."""
        while frames % self.dims.enc_context == 0 or frames % self.dims.window == 0:
            frames += 1
        return frames

    def _sound(self, name: str, note: str, features: Floats, padding: float = 0.0) -> None:
        """Add a case of encode_project of features [n_frames, 2 * n_mels] and padding up to whole units."""
        unit, dims = self.dims.unit, self.dims
        n_units = -(-len(features) // unit)
        padded = np.full((n_units * unit, features.shape[1]), np.float32(padding))
        padded[: len(features)] = features
        inputs: dict[str, Array | str] = {
            "features": padded.reshape(n_units, unit, -1),
            "length": np.array([len(features)]),
        }
        stride = _STRIDE if unit * dims.enc_dim > _WIDE else 1
        strides = dict.fromkeys(("encoder_out", "audio_embeds", "ctc_logits"), stride)
        if name in {_SPEECH, _ODD} or name.startswith(_RECORDING):  # decoding from its embeddings is judged
            del strides["audio_embeds"]
        real = name == _SPEECH or name.startswith(_RECORDING)
        self._case(name, ENCODE_PROJECT, note, inputs, strides=strides, real=real)

    def _prefill(self, name: str, note: str, rows: Floats) -> None:
        length = rows.shape[1]
        inputs = {"embeds": rows, "length": np.array([length])}
        self._case(name, PREFILL, f"{note}: {length} rows", inputs, real=name == "prefill_speech")

    def _case(
        self,
        name: str,
        graph: str,
        note: str,
        inputs: Mapping[str, Array | str],
        *,
        outputs: Sequence[str] | None = None,
        strides: Mapping[str, int] | None = None,
        fills: Mapping[str, float] | None = None,
        real: bool = False,
    ) -> None:
        """Add a case with what the graph returns; of that only `outputs`, where given."""
        arrays = {key: self.golden.arrays[value] if isinstance(value, str) else value for key, value in inputs.items()}
        found = self.engine.run(graph, arrays)
        kept = {key: found[key] for key in outputs or found}
        self.golden.add_case(name, graph, note, inputs, kept, strides=strides, fills=fills, real=real)


def _otherwise(clips: Sequence[Clip]) -> list[tuple[Clip, str, dict[str, Any]]]:
    """Return a recording with names and options beside the default ones; nobody says what is right then."""
    if not clips:
        return []
    clip = replace(min(clips, key=_seconds), reference=None)
    chunk_s = min(max(1.0, round(_seconds(clip) / _CHUNKS, 1)), _LONGEST_CHUNK_S)
    options = {**_OTHERWISE, "chunks": {"chunk_s": chunk_s, "max_new_tokens": 24}}
    return [(clip, f"{clip.path.stem}_{name}", how) for name, how in options.items()]


def _seconds(clip: Clip) -> float:
    return open_audio(clip.path).info.duration_s
