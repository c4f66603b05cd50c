"""Whisper's decode loop over one window: encode, prefill the prompt, then one step per token.

The caches stay where the engine keeps them; per token one row of logits comes to the host, where the rules and the
choice of the token are numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.engines.base import BoundGraph, Engine, Floats, Value
from runtime.families.whisper.language_detection import WindowLanguages
from runtime.families.whisper.rules import Rule, log_sum_exp, no_speech_probability
from runtime.families.whisper.settings import ALIGN, WhisperDims, WhisperSettings
from runtime.kv_cache import KvCache
from runtime.manifest import Graph
from runtime.timer import Timer


@dataclass(frozen=True)
class Window:
    """One encoded window: the decoder's cross-attention inputs, and `step` bound to them and to the self caches."""

    cross: Mapping[str, Value]
    step: BoundGraph


@dataclass(frozen=True)
class Prompted:
    """A window whose prompt is in the caches; any number of decodings begin with it, until there is another one.

    `logits` [V] f32 are those behind the prompt of `n_tokens`; nobody writes to them.
    """

    step: BoundGraph
    n_tokens: int
    logits: Floats
    no_speech_prob: float


@dataclass(frozen=True)
class Decoding:
    """Tokens decoded from one window, end token excluded; the mean log-probability counts the end token."""

    tokens: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float


class WhisperEncoderDecoder:
    """Runs the graphs frontend, encoder, prefill_* and step of a Whisper artifact.

    Parameters
    ----------
    engine : Engine
        The opened graphs.
    graphs : mapping of str to Graph
        The manifest's graphs.
    dims, settings
        The network and its special tokens.

    """

    def __init__(
        self, engine: Engine, graphs: Mapping[str, Graph], dims: WhisperDims, settings: WhisperSettings
    ) -> None:
        self._engine = engine
        self._dims = dims
        self._settings = settings
        self._mel_dtype = graphs["encoder"].inputs[0].dtype
        self._cache = KvCache(engine, (spec for spec in graphs["step"].inputs if spec.name.startswith("self_")))
        self.timer = Timer(engine)

    def mel(self, audio: Floats) -> Floats:
        """Return the features [n_mels, n_frames] f32 of one window of samples [n_samples] f32."""
        outputs = self._engine.run("frontend", {"audio": self._engine.put(audio[None], "float32")})
        mel: Floats = self._engine.get(outputs["mel"])[0]
        return mel

    def encode(self, mel: Floats) -> Window:
        """Encode the features [n_mels, n_frames] f32 of one window."""
        with self.timer.measure("encoder_s"):
            outputs = self._engine.run("encoder", {"mel": self._engine.put(mel[None], self._mel_dtype)})
            return self.window({name: value for name, value in outputs.items() if name.startswith("cross_")})

    def window(self, cross: Mapping[str, Value]) -> Window:
        """Return the window whose cross-attention inputs, on the device, are `cross`; verify gives golden ones."""
        return Window(cross, self._engine.bind("step", {**cross, **self._cache.values}))

    def languages(self, window: Window, codes: Sequence[str]) -> WindowLanguages:
        """Return how probable each language of `codes` is after the start-of-transcript token, were there no other."""
        logits, _ = self._prefill(window, [self._settings.sot])
        own = np.array([logits[self._settings.languages[code]] for code in codes])
        probabilities = np.exp(own - log_sum_exp(own)).tolist()
        no_speech_prob = no_speech_probability(logits, self._settings.no_speech)
        return WindowLanguages(dict(zip(codes, probabilities, strict=True)), no_speech_prob)

    def prompted(self, window: Window, prompt: Sequence[int]) -> Prompted:
        """Feed a prompt: at most the longest prefill graph's length, with the start-of-transcript token."""
        logits, start_logits = self._prefill(window, prompt)
        return Prompted(window.step, len(prompt), logits, no_speech_probability(start_logits, self._settings.no_speech))

    def decode(
        self,
        prompted: Prompted,
        rules: Sequence[Rule],
        choose: Callable[[Floats], tuple[int, float]],
        max_new_tokens: int | None = None,
    ) -> Decoding:
        """Decode one window.

        Parameters
        ----------
        prompted : Prompted
            The last one that was made.
        rules : sequence of Rule
            Applied to each step's logits in order.
        choose : callable
            Token and its log-probability from logits [V] f32.
        max_new_tokens : int or None
            Stop after so many tokens, the end token included.

        """
        limit = self._room(prompted.n_tokens, max_new_tokens)
        logits = prompted.logits.copy()
        tokens: list[int] = []
        logprobs: list[float] = []
        while True:
            for rule in rules:
                rule(logits, tokens)
            token, logprob = choose(logits)
            logprobs.append(logprob)
            if token == self._settings.eot:
                break
            tokens.append(token)
            if len(tokens) == limit:
                break
            with self.timer.measure("step_s"):
                logits = self._cache.step(prompted.step, token, prompted.n_tokens + len(tokens) - 1)
        return Decoding(tuple(tokens), sum(logprobs) / len(logprobs), prompted.no_speech_prob)

    def align(self, window: Window, tokens: Sequence[int]) -> tuple[Floats, Floats]:
        """Return how a window's text lies on its frames, all tokens at once; `tokens` begin as a prompt does.

        Of n tokens scores [heads, n, frames] f32 of the alignment heads, before their softmax, and probabilities
        [n - 1] f32 of the tokens behind the first, among those of text.
        """
        padded = np.full((1, self._dims.n_text_ctx), self._settings.eot, np.int64)
        # A text that takes all positions has none left for the end token.
        count = min(len(tokens), self._dims.n_text_ctx)
        padded[0, :count] = tokens[:count]
        with self.timer.measure("align_s"):
            outputs = self._engine.run(ALIGN, {"tokens": self._engine.put(padded, "int64"), **window.cross})
            scores, likely = (self._engine.get(outputs[name])[0] for name in ("scores", "probabilities"))
        return np.array(scores[:, :count], np.float32), np.array(likely[: count - 1], np.float32)

    def _room(self, prompt_length: int, max_new_tokens: int | None) -> int:
        """Return how many tokens may follow a prompt, as transformers counts: the prompt extends `max_length`."""
        context = self._dims.n_text_ctx
        wanted = self._settings.max_new_tokens if max_new_tokens is None else max_new_tokens
        if wanted is None:
            extension = min(context // 2 - 1, prompt_length)
            wanted = self._settings.max_length + extension - prompt_length
        return min(wanted, context - prompt_length)

    def _prefill(self, window: Window, prompt: Sequence[int]) -> tuple[Floats, Floats]:
        """Fill the caches' first rows; return the logits [V] f32 after the prompt and at its start-of-transcript."""
        length = next(n for n in self._dims.prefill_lengths if n >= len(prompt))
        tokens = np.full((1, length), self._settings.eot, np.int64)
        tokens[0, : len(prompt)] = prompt
        rows = np.array([prompt.index(self._settings.sot), len(prompt) - 1], np.int64)
        with self.timer.measure("prefill_s"):
            put = self._engine.put
            inputs = {"tokens": put(tokens, "int64"), "rows": put(rows, "int64"), **window.cross}
            outputs = self._engine.run(f"prefill_{length}", inputs)
            self._cache.write(outputs, 0, len(prompt))
            logits = self._engine.get(outputs["logits"])
        return np.array(logits[0, 1], np.float32), np.array(logits[0, 0], np.float32)
