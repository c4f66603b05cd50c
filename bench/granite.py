"""Granite Speech beside transformers: same weights, same features, same prompt, same number of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.granite_contestants import (
    CONTESTANTS,
    TRANSFORMERS,
    Contestant,
    Work,
    open_contestants,
    peak_memory,
)
from bench.measure import Run, measure, medians
from bench.report import RATIOS, Design, Target, Workload, milliseconds, results_of
from export.registry import MODELS
from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines.base import Floats
from runtime.errors import GateError, InputError
from runtime.families.granite_speech.features import log_mel
from runtime.families.granite_speech.options import GraniteOptions
from runtime.families.granite_speech.prompts import instruction, prompt_text
from runtime.families.granite_speech.settings import GraniteDims, GraniteFrontend, GraniteSettings
from runtime.families.granite_speech.tokenizer import GraniteTokenizer

SECONDS = (30.0, 60.0)
DESIGN = Design(
    peers=(TRANSFORMERS,),
    targets=(Target(1.0, "encoder"), Target(1.0, "prefill"), Target(1.0, "decode")),
    packages=("torch", "transformers", "onnxruntime", "numpy"),
    parts={"encoder": "encoder", "prefill": "prompt", "decode": "tokens"},
    columns={
        "audio\nms": milliseconds("encoder"),
        "prompt\nms": milliseconds("prefill"),
        "tokens\n/s": lambda entry: f"{entry['tokens_per_s']:.2f}",
        **RATIOS,
        "equal\ntokens": lambda entry: f"{entry['equal_tokens']}/{entry['tokens']}",
        "peak\nMB": lambda entry: f"{entry['peak_bytes'] / 1e6:,.0f}",
    },
)


def compare(contestants: Sequence[Contestant], work: Work, runs: int) -> Workload:
    """Return each contestant's runs, after a first round that does not count and shows that they do the same work.

    In the first round no token may come twice, since random weights otherwise repeat one token, on which anybody could
    agree.

    Parameters
    ----------
    contestants : sequence of Contestant
        All in this process, transformers among them.
    work : Work
        What each run does.
    runs : int
        Rounds that count.

    Raises
    ------
    GateError
        A contestant finds another first token than transformers, from the same features and prompt.

    """
    tokens = {one.name: one.run(work, distinct=True)[1] for one in contestants}
    reference = tokens[TRANSFORMERS]
    for name, own in tokens.items():
        if len(own) != work.count or own[0] != reference[0]:
            raise GateError(
                f"{name}: expected {work.count} tokens from {reference[0]} on, as {TRANSFORMERS} finds, "
                f"found {len(own)} from {own[:1]} on; nothing was timed"
            )

    def run(contestant: Contestant) -> Run:
        return contestant.run(work, distinct=False)[0]

    timed = measure({one.name: partial(run, one) for one in contestants}, runs)
    facts = {
        name: {
            "tokens": work.count,
            "equal_tokens": agreeing_tokens(own, reference),
            "tokens_per_s": (work.count - 1) / medians(timed[name], "wall_s")["decode"],
        }
        for name, own in tokens.items()
    }
    return Workload(timed, facts)


def bench(artifact: Artifact, audio: Path, runs: int, tokens: int, threads: int) -> dict[str, Any]:
    """Return the results of one benchmark, on the recording repeated or cut to each of the lengths.

    Raises
    ------
    InputError
        The model's context has no room for the longest recording and the tokens.

    """
    frontend = artifact.part("frontend", GraniteFrontend)
    recording = np.concatenate(list(open_audio(audio).blocks(frontend.sample_rate)))
    works = {seconds: work_of(artifact, recording, seconds, tokens) for seconds in SECONDS}
    # Before the contestants are open here: each of these processes needs as much memory as one of them.
    peaks = {
        seconds: {name: peak_memory(artifact, name, threads, work) for name in CONTESTANTS}
        for seconds, work in works.items()
    }
    contestants = open_contestants(artifact, threads)
    workloads = dict[str, Workload]()
    for seconds, work in works.items():
        workload = compare(contestants, work, runs)
        facts = {name: {**fact, "peak_bytes": peaks[seconds][name]} for name, fact in workload.facts.items()}
        workloads[f"{seconds:g} s of audio, {tokens} tokens, {_layers(artifact)}"] = Workload(workload.runs, facts)
    return results_of(artifact, DESIGN, workloads, _protocol(artifact, audio, works, runs, threads))


def work_of(artifact: Artifact, recording: Floats, seconds: float, tokens: int) -> Work:
    """Return the work on samples f32 [n], repeated or cut to a length.

    Raises
    ------
    InputError
        The model's context has no room for it.

    """
    frontend, settings = artifact.part("frontend", GraniteFrontend), artifact.part("settings", GraniteSettings)
    dims = artifact.part("dims", GraniteDims)
    features = log_mel(np.resize(recording, round(seconds * frontend.sample_rate)), frontend)
    text = prompt_text(instruction(GraniteOptions()), dims.n_embeds(len(features)), settings)
    tokenizer = GraniteTokenizer(artifact.file(settings.tokenizer_file), dims.n_vocab, settings.audio_token)
    prompt = tokenizer.encode_prompt(text)
    room = dims.n_ctx - len(prompt)
    if tokens > room:
        raise InputError(f"--tokens: expected at most {room} after {seconds:g} s of audio, found {tokens}")
    return Work(features, prompt, tokens)


def agreeing_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Return after how many equal tokens the two sequences part."""
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def _layers(artifact: Artifact) -> str:
    """Return how many of the language model's layers are there."""
    there, entry = artifact.part("dims", GraniteDims).lm_layers, MODELS.get(artifact.content.model)
    whole = there if entry is None else entry.dims["lm_layers"]
    return f"{there} of {whole} layers of the language model"


def _protocol(artifact: Artifact, audio: Path, works: Mapping[float, Work], runs: int, threads: int) -> dict[str, Any]:
    dims = artifact.part("dims", GraniteDims)
    work = works[SECONDS[0]]
    return {
        "audio": audio.name,
        "seconds": list(SECONDS),
        "frames": [len(work.features) for work in works.values()],
        "prompt_tokens": [len(work.prompt) for work in works.values()],
        "tokens": work.count,
        "language_model": _layers(artifact) + "; nothing is scaled to the others",
        "dims": dims.model_dump(),
        "threads": threads,
        "warm_up": "one round that does not count, without repeats: its tokens are those compared",
        "equal_tokens": f"with {TRANSFORMERS}, before the first that differs",
        "runs": runs,
        "order": "interleaved in an order drawn for each round, one process",
        "decoding": "greedy, end token forbidden; the first token from the prompt's logits, one step for each other",
        "encoder": f"with the projector: features in, embeddings out; ours pads to units of {dims.unit} frames",
        "precision": "float32",
        "peak_bytes": "resident memory of one run in a process of its own, the interpreter, all imports and the mapped "
        "weights included (VmHWM)",
        "peers": {TRANSFORMERS: "modules and key-value cache called in a loop, sdpa attention, without `generate`"},
    }
