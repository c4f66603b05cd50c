"""Parakeet-TDT beside onnx-asr, sherpa-onnx and transformers: same weights, same recordings."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import Run, measure
from bench.parakeet_contestants import (
    Contestant,
    OnnxAsr,
    SherpaOnnx,
    Transformers,
    open_contestants,
)
from bench.report import RATIOS, Design, Target, Workload, milliseconds, results_of
from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines.base import Floats
from runtime.errors import GateError
from runtime.fastconformer.settings import FastConformerFrontend

# The recording of the port that issue 4 speaks of, and a minute.
SECONDS = (7.43, 60.0)
# Random weights decide by small margins: features that differ in the last bits may change tokens, but not the amount
# of work by more than this.
TOKENS_LIMIT = 0.05
DESIGN = Design(
    peers=(OnnxAsr.name, SherpaOnnx.name, Transformers.name),
    targets=(Target(1.03, "encoder"), Target(1.0, "decoder", (OnnxAsr.name,))),
    packages=("torch", "transformers", "onnxruntime", "onnx-asr", "sherpa-onnx", "numpy"),
    parts={"frontend": "log-mel", "encoder": "encoder", "decoder": "search"},
    columns={
        "log-mel\nms": milliseconds("frontend", 1),
        "encoder\nms": milliseconds("encoder"),
        "search\nms": milliseconds("decoder", 1),
        "total\nms": milliseconds("total"),
        **RATIOS,
        "equal\ntokens": lambda entry: f"{entry['equal_tokens']} of {entry['tokens']}",
    },
)


def compare(contestants: Sequence[Contestant], samples: Floats, runs: int) -> Workload:
    """Return each contestant's runs, after a first round that does not count and shows that they do the same work.

    Parameters
    ----------
    contestants : sequence of Contestant
        Ours first.
    samples : Floats
        f32 [n], one recording.
    runs : int
        Rounds that count.

    Raises
    ------
    GateError
        A contestant finds more or fewer tokens than ours: its times would be of other work.

    """
    tokens = {one.name: one.run(samples)[1] for one in contestants}
    ours = tokens[contestants[0].name]
    facts = {
        name: {"tokens": len(ours), "found": len(own), "equal_tokens": common_tokens(ours, own)}
        for name, own in tokens.items()
    }
    for name, own in tokens.items():
        if abs(len(own) - len(ours)) > TOKENS_LIMIT * len(ours):
            raise GateError(
                f"{name}: expected about {len(ours)} tokens, as {contestants[0].name} finds, found {len(own)}; "
                "nothing was timed"
            )

    def run(contestant: Contestant) -> Run:
        return contestant.run(samples)[0]

    return Workload(measure({one.name: partial(run, one) for one in contestants}, runs), facts)


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common, in their order."""
    blocks = SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks)


def bench(artifact: Artifact, audio: Path, runs: int, threads: int) -> dict[str, Any]:
    """Return the results of one benchmark, on the recording repeated or cut to each of the lengths."""
    frontend = artifact.part("frontend", FastConformerFrontend)
    recording = np.concatenate(list(open_audio(audio).blocks(frontend.sample_rate)))
    workloads: dict[str, Workload] = {}
    with tempfile.TemporaryDirectory() as scratch:
        contestants = open_contestants(artifact, threads, Path(scratch))
        for seconds in SECONDS:
            samples = np.resize(recording, round(seconds * frontend.sample_rate))
            contestants.sherpa.replay(contestants.onnx_asr.frames(samples), Path(scratch, f"replay-{seconds}"))
            workloads[f"{seconds:g} s of audio"] = compare(contestants.all, samples, runs)
    protocol = {
        "audio": audio.name,
        "seconds": list(SECONDS),
        "threads": threads,
        "warm_up": "one round that does not count: its tokens are those compared",
        "equal_tokens": "common to ours and theirs, in their order; sherpa-onnx: of onnx-asr's encoder frames",
        "runs": runs,
        "order": "interleaved in an order drawn for each round, one process; samples in, token ids out; greedy",
        "precision": "float32",
        "peers": {
            OnnxAsr.name: "export --layout onnx-asr; preprocessor, encoder and decoding of its model, in their order",
            SherpaOnnx.name: "export --layout sherpa-onnx; the search is timed alone on stored frames, the encoder is "
            "what one call of its recognizer takes above that; its own ONNX Runtime",
            Transformers.name: "feature extractor and encoder; modules called in a loop, without `generate`",
        },
    }
    return results_of(artifact, DESIGN, workloads, protocol)
