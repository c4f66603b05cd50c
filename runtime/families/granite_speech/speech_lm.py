"""Granite Speech's decode loop: encode the audio, splice it into the prompt, prefill, then one step per token.

The caches stay where the engine keeps them; per token one row of logits comes to the host, where the choice of the
token is numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from runtime.engines.base import BoundGraph, Engine, Floats, Value
from runtime.errors import EnvironmentNotFitError, InputError
from runtime.families.granite_speech.settings import (
    DECODE,
    EMBED,
    ENCODE_PROJECT,
    PREFILL,
    GraniteDims,
    GraniteSettings,
    bucket,
    bucket_units,
)
from runtime.kv_cache import KvCache
from runtime.manifest import Graph
from runtime.timer import Timer

# Token and its natural log-probability from logits [V] f32.
Choose: TypeAlias = Callable[[Floats], tuple[int, float]]
# What is embedded where an audio token stands: its row is an audio embedding's or, where the model emitted it, this
# token's (as in transformers).
_IN_PLACE_OF_AUDIO = 0


class Rule(Protocol):
    """Changes what may follow."""

    def __call__(self, logits: Floats, tokens: Sequence[int], /) -> None:
        """Change the logits [V] of one step in place, given the tokens so far; a forbidden token gets -inf."""


@dataclass(frozen=True)
class Encoded:
    """One encoded recording: `audio_embeds` [n_embeds, lm_dim] f32 on the host, `ctc_logits` padded on the device."""

    audio_embeds: Floats
    ctc_logits: Value
    n_frames: int


@dataclass(frozen=True)
class Decoding:
    """What the model answered.

    `tokens` are without the end token. `logprobs` are the natural log-probabilities of the tokens chosen, the end
    token's included. `finish` says why it ended: with an end token, at the most tokens allowed, or in a loop, of which
    the first round is kept. `steps` counts calls of the graph `decode`.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["end", "length", "repetition"]
    steps: int

    @property
    def avg_logprob(self) -> float:
        """Mean of `logprobs`."""
        return sum(self.logprobs) / len(self.logprobs)


def greedy(logits: Floats) -> tuple[int, float]:
    """Return the likeliest token of logits [V] f32 and its log-probability.

    Raises
    ------
    EnvironmentNotFitError
        The logits are not numbers.

    """
    token = int(logits.argmax())
    highest = float(logits[token])
    if not math.isfinite(highest):  # argmax returns the first NaN
        raise EnvironmentNotFitError(
            "expected finite logits, found NaN or Inf; `atlasport verify` tells which graph, fp32 may be right"
        )
    return token, -math.log(np.exp(logits - highest).sum(dtype=np.float64))


class GraniteSpeechLM:
    """Runs the graphs of a Granite Speech artifact.

    On a device, prompt, cache and audio are padded to few lengths, since each new shape costs the device a compilation;
    on the CPU, where padding is all that it costs, to none.

    Parameters
    ----------
    engine : Engine
        The opened graphs.
    graphs : mapping of str to Graph
        The manifest's graphs.
    dims, settings
        The network, its special tokens and lengths.
    in_buckets : bool or None
        Whether to pad; None: as the device is.

    """

    def __init__(
        self,
        engine: Engine,
        graphs: Mapping[str, Graph],
        dims: GraniteDims,
        settings: GraniteSettings,
        *,
        in_buckets: bool | None = None,
    ) -> None:
        self._engine = engine
        self._dims = dims
        self._settings = settings
        self._in_buckets = engine.device != "cpu" if in_buckets is None else in_buckets
        self._cache_specs = [spec for spec in graphs[DECODE].inputs if spec.name in {"k", "v"}]
        self._dtype = self._cache_specs[0].dtype
        # One length at a time, kept for the next chunk: its cache, and `decode` bound to it.
        self._cache_length = 0
        self._cache: KvCache | None = None
        self._decode: BoundGraph | None = None
        self.timer = Timer(engine)

    def encode(self, features: Floats) -> Encoded:
        """Encode the features [n_frames, 2 * n_mels] f32 of one recording, padded to whole units of the encoder."""
        unit, count = self._dims.unit, len(features)
        units = bucket_units(-(-count // unit)) if self._in_buckets else -(-count // unit)
        padded = np.zeros((units, unit, features.shape[1]), np.float32)
        padded.reshape(units * unit, -1)[:count] = features
        with self.timer.measure("encoder_s"):
            put = self._engine.put
            inputs = {"features": put(padded, "float32"), "length": put(np.array([count], np.int64), "int64")}
            outputs = self._engine.run(ENCODE_PROJECT, inputs)
            embeds = self._engine.get(outputs["audio_embeds"]).reshape(-1, self._dims.lm_dim)
            valid = np.array(embeds[: self._dims.n_embeds(count)], np.float32)
        return Encoded(valid, outputs["ctc_logits"], count)

    def ctc_logits(self, encoded: Encoded) -> Floats:
        """Return the encoder's own logits [n_frames, n_ctc] f32, copied from the device."""
        logits = self._engine.get(encoded.ctc_logits).reshape(-1, self._dims.n_ctc)
        return np.array(logits[: encoded.n_frames], np.float32)

    def room(self, prompt: Sequence[int]) -> int:
        """Return how many tokens may follow a prompt.

        Raises
        ------
        InputError
            None may: the prompt is as long as the model's context.

        """
        most = min(self._dims.n_ctx, self._settings.cache_lengths[-1])
        room = most - len(prompt)
        if room < 1 or len(prompt) > self._settings.prefill_lengths[-1]:
            audio = sum(token == self._settings.audio_token for token in prompt)
            raise InputError(
                f"prompt: expected fewer tokens than {min(most, self._settings.prefill_lengths[-1] + 1)}, the model's "
                f"context, found {len(prompt)}, {audio} of them audio; use a smaller --chunk, fewer keywords or a "
                "shorter prompt"
            )
        return room

    def generate(
        self,
        prompt: Sequence[int],
        encoded: Encoded,
        max_new_tokens: int | None = None,
        *,
        rules: Sequence[Rule] = (),
        choose: Choose = greedy,
        on_token: Callable[[int], object] | None = None,
        guard: Callable[[Sequence[int]], int | None] | None = None,
    ) -> Decoding:
        """Answer a prompt.

        Parameters
        ----------
        prompt : sequence of int
            With an audio token for each of the recording's embeddings.
        encoded : Encoded
            From `encode`.
        max_new_tokens : int or None
            At most so many tokens, the end token included; None or more than there is room for: as many as fit.
        rules : sequence of Rule
            Applied to each step's logits in order.
        choose : callable
            Chooses each token; a teacher's choice goes through the same loop.
        on_token : callable or None
            Is told each token as it is chosen, the end token not.
        guard : callable or None
            Returns how many tokens to keep where the text so far ends in a loop, see `repetition.loop_start`.

        Raises
        ------
        InputError
            The prompt is longer than the model's context.

        """
        room = self.room(prompt)
        limit = room if max_new_tokens is None else min(room, max_new_tokens)
        logits = self._prefill(prompt, encoded, len(prompt) + limit)
        tokens: list[int] = []
        logprobs: list[float] = []
        for step in range(limit):
            if step:
                logits = self._step(tokens[-1], len(prompt) + step - 1)
            for rule in rules:
                rule(logits, tokens)
            token, logprob = choose(logits)
            logprobs.append(logprob)
            if token in self._settings.eos:
                return Decoding(tuple(tokens), tuple(logprobs), "end", step)
            tokens.append(token)
            if on_token is not None:
                on_token(token)
            kept = None if guard is None else guard(tokens)
            if kept is not None:
                return Decoding(tuple(tokens[:kept]), tuple(logprobs[:kept]), "repetition", step)
        return Decoding(tuple(tokens), tuple(logprobs), "length", limit - 1)

    def _prefill(self, prompt: Sequence[int], encoded: Encoded, needed: int) -> Floats:
        """Fill the first rows of caches of at least `needed`; return the logits [V] f32 after the prompt."""
        count = len(prompt)
        length = bucket(count, self._settings.prefill_lengths) if self._in_buckets else count
        put = self._engine.put
        with self.timer.measure("prefill_s"):
            cache = self._make_cache(bucket(needed, self._settings.cache_lengths) if self._in_buckets else needed)
            embeds = put(self._embeds(prompt, encoded, length)[None], self._dtype)
            inputs = {"embeds": embeds, "length": put(np.array([count], np.int64), "int64")}
            outputs = self._engine.run(PREFILL, inputs)
            cache.write(outputs, 0, count)
            return np.array(self._engine.get(outputs["logits"])[0], np.float32)

    def _embeds(self, prompt: Sequence[int], encoded: Encoded, length: int) -> Floats:
        """Return the embeddings [length, lm_dim] f32 of a padded prompt, the audio's in place of audio tokens."""
        ids = np.zeros(length, np.int64)
        ids[: len(prompt)] = prompt
        audio = ids == self._settings.audio_token
        if audio.sum() != len(encoded.audio_embeds):
            msg = f"prompt: expected {len(encoded.audio_embeds)} audio tokens, found {audio.sum()}"
            raise ValueError(msg)
        ids[audio] = _IN_PLACE_OF_AUDIO
        outputs = self._engine.run(EMBED, {"tokens": self._engine.put(ids[None], "int64")})
        embeds = np.array(self._engine.get(outputs["embeds"])[0], np.float32)
        embeds[audio] = encoded.audio_embeds
        return embeds

    def _make_cache(self, length: int) -> KvCache:
        """Make a cache of `length` rows and bind `decode` to it, or keep the one there is."""
        if self._cache is None or length != self._cache_length:
            self._cache = self._decode = None  # before the new one takes memory
            sizes = [
                tuple(length if isinstance(size, str) else size for size in spec.shape) for spec in self._cache_specs
            ]
            specs = zip(self._cache_specs, sizes, strict=True)
            self._cache = KvCache(self._engine, (spec.model_copy(update={"shape": shape}) for spec, shape in specs))
            self._decode = self._engine.bind(DECODE, self._cache.values)
            self._cache_length = length
        return self._cache

    def _step(self, token: int, position: int) -> Floats:
        """Feed `token` at `position`; return the next token's logits [V] f32, which the caller may write to."""
        assert self._cache is not None
        assert self._decode is not None
        fed = _IN_PLACE_OF_AUDIO if token == self._settings.audio_token else token
        with self.timer.measure("decode_s"):
            return self._cache.step(self._decode, fed, position)
