"""Who takes part: our engine and transformers in eager mode, both in float32 on the CPU.

Each does the same work: the features of one recording in; encoder and projector, the prompt, a fixed number of greedy
tokens, the end token forbidden so that nobody stops early. torch is imported by those who need it: the memory of each
contestant is measured in a process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Protocol

import numpy as np

from bench.measure import Laps, Run
from export.costs import peak_rss
from runtime.artifact import Artifact
from runtime.engines import open_engine
from runtime.engines.base import Floats
from runtime.errors import EnvironmentNotFitError
from runtime.families.granite_speech.settings import (
    DECODE,
    EMBED,
    ENCODE_PROJECT,
    PREFILL,
    GraniteDims,
    GraniteSettings,
)
from runtime.families.granite_speech.speech_lm import GraniteSpeechLM

OURS, TRANSFORMERS = "atlasport onnxruntime", "transformers eager"


@dataclass(frozen=True)
class Work:
    """What a run does.

    `features` are f32 [n_frames, 2 * n_mels]; `prompt` holds the audio token once for each audio embedding. `count`
    tokens are found: the first from the prompt's logits, then one step for each other.
    """

    features: Floats
    prompt: tuple[int, ...]
    count: int


class Contestant(Protocol):
    """One implementation with its weights loaded."""

    name: str

    def run(self, work: Work, *, distinct: bool) -> tuple[Run, list[int]]:
        """Return what encoder, prompt and steps cost, and exactly `count` tokens; `distinct`: none of them twice."""


class Ours:
    """Our engine under the decode loop that `atlasport run` uses."""

    name = OURS

    def __init__(self, artifact: Artifact, threads: int) -> None:
        dims, self._settings = artifact.part("dims", GraniteDims), artifact.part("settings", GraniteSettings)
        engine = open_engine(artifact, "onnxruntime", "cpu", threads, [ENCODE_PROJECT, EMBED, PREFILL, DECODE])
        self._decoder = GraniteSpeechLM(engine, artifact.content.graphs, dims, self._settings)

    def run(self, work: Work, *, distinct: bool) -> tuple[Run, list[int]]:
        """Return costs and tokens."""
        laps, tokens = Laps(), list[int]()
        encoded = self._decoder.encode(work.features)
        laps.end("encoder")

        def choose(logits: Floats) -> tuple[int, float]:
            if not tokens:
                laps.end("prefill")
            logits[[*self._settings.eos, *(tokens if distinct else [])]] = -np.inf
            tokens.append(int(logits.argmax()))
            return tokens[-1], 0.0

        self._decoder.generate(work.prompt, encoded, work.count, choose=choose)
        laps.end("decode")
        return laps.run, tokens


class Transformers:
    """transformers' modules in eager mode with its key-value cache, without the overhead of `generate`."""

    name = TRANSFORMERS

    def __init__(self, artifact: Artifact, threads: int) -> None:
        import torch

        from export.families.granite_speech.source import transformers_model

        torch.set_num_threads(threads)
        dims, settings = artifact.part("dims", GraniteDims), artifact.part("settings", GraniteSettings)
        self._eos = settings.eos
        self.model = transformers_model(dims, settings, artifact.file("weights.safetensors")).eval()

    def run(self, work: Work, *, distinct: bool) -> tuple[Run, list[int]]:
        """Return costs and tokens."""
        import torch

        laps, tokens = Laps(), list[int]()
        with torch.inference_mode():
            audio = self.model.get_audio_features(torch.from_numpy(work.features)[None]).pooler_output
            laps.end("encoder")
            embeds = self.model.model.get_merged_audio_embeddings(torch.tensor([work.prompt]), audio)
            output = self.model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
            while True:
                logits = output.logits[0, -1]
                if not tokens:
                    laps.end("prefill")
                logits[[*self._eos, *(tokens if distinct else [])]] = -torch.inf
                tokens.append(int(logits.argmax()))
                if len(tokens) == work.count:
                    break
                fed = torch.tensor([[tokens[-1]]])
                output = self.model(
                    input_ids=fed, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1
                )
        laps.end("decode")
        return laps.run, tokens


CONTESTANTS: dict[str, type[Ours | Transformers]] = {OURS: Ours, TRANSFORMERS: Transformers}


def open_contestants(artifact: Artifact, threads: int) -> Sequence[Contestant]:
    """Return all contestants with the artifact's weights, ours first."""
    return [contestant(artifact, threads) for contestant in CONTESTANTS.values()]


def peak_memory(artifact: Artifact, name: str, threads: int, work: Work) -> int:
    """Return the peak resident memory in bytes of one run of a contestant, in a process of its own.

    Raises
    ------
    EnvironmentNotFitError
        The process was killed, as happens where memory is short.

    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_peak, artifact, name, threads, work).result()
        except BrokenProcessPool as error:
            raise EnvironmentNotFitError(
                f"{name}: expected memory for {artifact.content.model}, found its process killed; "
                "take fewer layers (--lm-layers)"
            ) from error


def _peak(artifact: Artifact, name: str, threads: int, work: Work) -> int:
    CONTESTANTS[name](artifact, threads).run(work, distinct=False)
    return peak_rss()
