"""Cnn8Rnn beside the same network in eager PyTorch: same weights, same recordings, equal logits checked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bench.measure import Laps, Run, measure
from bench.report import RATIOS, Design, Target, Workload, milliseconds, results_of
from export.families import open_model
from export.families.cnn8rnn.source import SourceCnn8Rnn
from export.weights import RANDOM, resolve_weights
from runtime.artifact import Artifact, sha256_of
from runtime.audio import open_audio
from runtime.engines import engines_of, open_engine
from runtime.engines.base import Floats
from runtime.errors import GateError, InputError
from runtime.families.cnn8rnn.recognizer import Cnn8RnnRecognizer
from runtime.families.cnn8rnn.settings import FRONTEND, GATES, HEAD, RECURRENCE, Cnn8RnnFrontend

# Lengths of the recordings.
SECONDS = (10, 60)
EAGER = "eager PyTorch"
# Limit of the difference of two logits, in units of the largest logit. On jfk.flac it is 2.2e-4, of which the network
# makes 2e-6: near -96 dB, rounding moves a mel bin by 0.02 dB in torch.stft and by 0.01 dB in our convolution, from
# a spectrum computed in float64.
LARGEST_DIFFERENCE = 1e-3
DESIGN = Design(
    peers=(EAGER,),
    targets=(Target(0.5),),
    packages=("torch", "onnxruntime", "numpy"),
    parts={"frontend": "log-mel", "body": "network"},
    columns={
        "log-mel\nms": milliseconds("frontend", 1),
        "network\nms": milliseconds("body"),
        "total\nms": milliseconds("total"),
        **RATIOS,
        "largest\ndifference": lambda entry: f"{entry['largest_difference']:.1e}",
    },
)


class Contestant(Protocol):
    """One implementation with its weights loaded."""

    name: str

    def logmel(self, samples: Floats) -> Floats:
        """Return dB f32 [n_mels, n_frames] of samples f32 [n]."""

    def logits(self, logmel: Floats) -> Floats:
        """Return logits f32 [n_scores, n_classes] of dB f32 [n_mels, n_frames]."""


class Ours(Cnn8RnnRecognizer):
    """One of our engines under what `atlasport run` calls."""

    def __init__(self, artifact: Artifact, engine: str, threads: int) -> None:
        super().__init__(artifact, open_engine(artifact, engine, "cpu", threads, [FRONTEND, GATES, RECURRENCE, HEAD]))
        self.name = f"atlasport {engine}"


class Eager:
    """The source implementation: torch.stft, batch normalisations of their own, torch.nn.GRU."""

    name = EAGER

    def __init__(self, source: SourceCnn8Rnn) -> None:
        self._source = source

    def logmel(self, samples: Floats) -> Floats:
        """Return dB f32 [n_mels, n_frames] of samples f32 [n]."""
        logmel: Floats = self._source.run(FRONTEND, {"audio": samples[None]})["logmel"][0]
        return logmel

    def logits(self, logmel: Floats) -> Floats:
        """Return logits f32 [n_scores, n_classes] of dB f32 [n_mels, n_frames]."""
        return self._source.logits(logmel)


def source_of(artifact: Artifact, weights: str | None) -> SourceCnn8Rnn:
    """Return the source implementation with the weights that the artifact was exported from.

    Raises
    ------
    InputError
        `weights`, or what the artifact says of them where that is None, are not those weights.

    """
    content = artifact.content
    if weights is None:
        weights = RANDOM if content.source.weights == "random" else content.source.repo
    _, model = open_model(resolve_weights(content.model, weights))
    found = {path.name: sha256_of(path) for path in model.source_files}
    if found != content.source.files:
        raise InputError(
            f"{artifact.path}: expected weights from {content.source.origin}, found others; "
            "name what it was exported from with WEIGHTS="
        )
    source = model.source(artifact.file("weights.safetensors"))
    assert isinstance(source, SourceCnn8Rnn)
    return source


def open_contestants(artifact: Artifact, weights: str | None, threads: int) -> list[Contestant]:
    """Return every engine that the artifact has graphs for, and the peer with its weights."""
    torch.set_num_threads(threads)
    ours = [Ours(artifact, engine, threads) for engine in engines_of(artifact)]
    return [*ours, Eager(source_of(artifact, weights))]


def compare(contestants: Sequence[Contestant], samples: Floats, runs: int) -> Workload:
    """Return each contestant's runs, after a first round that does not count and shows that they do the same work.

    Parameters
    ----------
    contestants : sequence of Contestant
        Ours and the peer, in this process.
    samples : Floats
        f32 [n], one recording, run in one call.
    runs : int
        Rounds that count.

    Raises
    ------
    GateError
        A contestant's logits are not the peer's: its times would be of other work.

    """
    logits = {one.name: one.logits(one.logmel(samples)) for one in contestants}
    reference = logits[EAGER]
    largest = float(np.abs(reference).max())
    facts = {
        name: {"largest_difference": float(np.abs(own - reference).max()), "largest_logit": largest}
        for name, own in logits.items()
    }
    for name, fact in facts.items():
        # Not so for NaN either.
        if not fact["largest_difference"] <= LARGEST_DIFFERENCE * largest:
            raise GateError(
                f"{name}: expected the logits of {EAGER} within {LARGEST_DIFFERENCE:g} of the largest ({largest:.3g}), "
                f"found {fact['largest_difference']:.3g} between two; nothing was timed"
            )

    def run(contestant: Contestant) -> Run:
        laps = Laps()
        logmel = contestant.logmel(samples)
        laps.end("frontend")
        contestant.logits(logmel)
        laps.end("body")
        return laps.run

    return Workload(measure({one.name: partial(run, one) for one in contestants}, runs), facts)


def bench(artifact: Artifact, audio: Path, runs: int, threads: int, *, weights: str | None) -> dict[str, Any]:
    """Return the results of one benchmark, on the recording repeated or cut to each of the lengths."""
    rate = artifact.part("frontend", Cnn8RnnFrontend).sample_rate
    samples = np.concatenate(list(open_audio(audio).blocks(rate)))
    contestants = open_contestants(artifact, weights, threads)
    workloads = {
        f"{length} s of audio": compare(contestants, np.resize(samples, length * rate), runs) for length in SECONDS
    }
    protocol = {
        "audio": audio.name,
        "seconds": list(SECONDS),
        "threads": threads,
        "warm_up": "one round that does not count: its logits are those compared",
        "largest_difference": f"of two logits, from {EAGER}; limit {LARGEST_DIFFERENCE:g} of the largest logit",
        "runs": runs,
        "order": "interleaved in an order drawn for each round, one process; one call a recording, arrays in and out",
        "precision": "float32",
        "peers": {EAGER: "torch.stft, BatchNorm2d in evaluation mode, nn.GRU, inference_mode, nothing folded"},
    }
    return results_of(artifact, DESIGN, workloads, protocol)
