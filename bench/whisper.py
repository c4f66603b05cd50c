"""Whisper beside transformers and faster-whisper: same weights, same window, same number of tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import Laps, Run, measure
from bench.report import RATIOS, Design, Target, Workload, milliseconds, results_of
from bench.whisper_contestants import Contestant, FasterWhisper, Ours, Transformers, write_checkpoint
from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines import engines_of
from runtime.engines.base import Floats
from runtime.errors import InputError
from runtime.families.whisper.logmel import log_mel
from runtime.families.whisper.settings import WhisperFrontend, WhisperSettings

DESIGN = Design(
    peers=(Transformers.name, FasterWhisper.name),
    targets=(Target(1.05),),
    packages=("torch", "transformers", "onnxruntime", "ctranslate2", "faster-whisper", "numpy"),
    parts={"encoder": "encoder", "decoder": "prompt and tokens"},
    columns={
        "encoder\nms": milliseconds("encoder", 1),
        "token\nms": lambda entry: f"{1e3 * entry['median']['wall_s']['decoder'] / entry['tokens']:.2f}",
        "total\nms": milliseconds("total"),
        **RATIOS,
        "equal\ntokens": lambda entry: f"{entry['equal_tokens']} of {entry['tokens']}",
    },
)


def prompt_of(settings: WhisperSettings) -> list[int]:
    """Return the prompt for English transcription without time stamps, or what an English-only model has of it."""
    chosen = [settings.languages.get("en"), settings.tasks.get("transcribe")]
    return [settings.sot, *(token for token in chosen if token is not None), settings.no_timestamps]


def window_of(audio: Path, frontend: WhisperFrontend) -> Floats:
    """Return the mel features of one full window of the recording, repeated as often as needed."""
    samples = np.concatenate(list(open_audio(audio).blocks(frontend.sample_rate)))
    return log_mel(np.resize(samples, frontend.n_samples), frontend)


def open_contestants(artifact: Artifact, threads: int, scratch: Path) -> list[Contestant]:
    """Return every engine that the artifact has graphs for, and the peers with its weights."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    eot = WhisperSettings.model_validate(artifact.content.settings).eot
    write_checkpoint(artifact, scratch)
    ours = [Ours(artifact, engine, threads) for engine in engines_of(artifact)]
    return [*ours, Transformers(scratch, eot), FasterWhisper(scratch, eot, threads)]


def compare(
    contestants: Sequence[Contestant], mel: Floats, prompt: Sequence[int], count: int, runs: int
) -> tuple[dict[str, list[int]], dict[str, list[Run]]]:
    """Return each contestant's tokens in a first round that does not count, and then its runs that do.

    The first round warms up and shows that they do the same work: there no token may come twice, since random weights
    otherwise repeat one token, on which anybody could agree.

    Parameters
    ----------
    contestants : sequence of Contestant
        All in this process.
    mel : array, f32 [n_mels, n_frames]
        One window.
    prompt : sequence of int
        Tokens before the first new one.
    count : int
        New tokens: the first from the prompt's logits, then `count` - 1 steps.
    runs : int
        Rounds that count.

    """
    tokens = dict[str, list[int]]()
    for contestant in contestants:
        decoded = contestant.decode(contestant.encode(mel), prompt, count, distinct=True)
        if len(decoded) != count:
            raise RuntimeError(f"{contestant.name}: expected {count} tokens, found {len(decoded)}")
        tokens[contestant.name] = decoded

    def run(contestant: Contestant) -> Run:
        laps = Laps()
        encoded = contestant.encode(mel)
        laps.end("encoder")
        contestant.decode(encoded, prompt, count, distinct=False)
        laps.end("decoder")
        return laps.run

    return tokens, measure({one.name: partial(run, one) for one in contestants}, runs)


def agreeing_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Return after how many equal tokens the two sequences part."""
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def bench(artifact: Artifact, audio: Path, runs: int, tokens: int, threads: int) -> dict[str, Any]:
    """Return the results of one benchmark.

    Raises
    ------
    InputError
        The model's context has no room for the tokens.

    """
    content = artifact.content
    frontend = WhisperFrontend.model_validate(content.frontend)
    prompt = prompt_of(WhisperSettings.model_validate(content.settings))
    room = content.dims["n_text_ctx"] - len(prompt)
    if tokens > room:
        raise InputError(f"--tokens: expected at most {room} for {content.model}, found {tokens}")
    mel = window_of(audio, frontend)
    with tempfile.TemporaryDirectory() as scratch:
        contestants = open_contestants(artifact, threads, Path(scratch))
        decoded, timed = compare(contestants, mel, prompt, tokens, runs)
    window_s = frontend.n_samples / frontend.sample_rate
    reference = decoded[Transformers.name]
    facts = {name: {"tokens": tokens, "equal_tokens": agreeing_tokens(own, reference)} for name, own in decoded.items()}
    protocol = {
        "audio": audio.name,
        "window_s": window_s,
        "prompt": prompt,
        "tokens": tokens,
        "threads": threads,
        "warm_up": "one round that does not count, without repeats: its tokens are those compared",
        "equal_tokens": f"with {Transformers.name}, before the first that differs",
        "runs": runs,
        "order": "interleaved in an order drawn for each round, one process",
        "decoding": "greedy, end token forbidden; the first token from the prompt's logits, one step for each other",
        "encoder": "ours includes the keys and values for cross-attention, the peers have them in the decoder's time",
        "precision": "float32",
        "peers": {
            "transformers eager": "modules and kv cache called in a loop, sdpa attention, without `generate`",
            "faster-whisper": "compute_type float32, beam_size 1",
        },
    }
    workload = Workload(timed, facts)
    return results_of(artifact, DESIGN, {f"{window_s:g} s of audio, {tokens} tokens": workload}, protocol)
