"""Our engines beside transformers and faster-whisper: same weights, same window, same number of tokens.

`make bench MODEL=whisper-tiny` prints a table and writes bench/results/<model>.json and .svg.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import jinja2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bench.contestants import Contestant, FasterWhisper, Ours, Transformers, write_checkpoint
from bench.measure import Summary, agreeing_tokens, measure
from runtime.artifact import Artifact, find_artifact, open_artifact
from runtime.audio import open_audio
from runtime.engines import engines_of
from runtime.engines.base import Floats
from runtime.errors import AtlasportError, InputError
from runtime.families.whisper.logmel import log_mel
from runtime.families.whisper.settings import WhisperFrontend, WhisperSettings

FOLDER = Path(__file__).resolve().parent
AUDIO = FOLDER.parent / "samples" / "jfk.flac"
PEERS = (Transformers.name, FasterWhisper.name)
# The target: our best engine's total over that of the faster peer.
LIMIT = 1.05
# One thread alone on its core takes as long by the clock as by CPU time.
BUSY = 1.1
PACKAGES = ("torch", "transformers", "onnxruntime", "ctranslate2", "faster-whisper", "numpy")


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


def results_of(artifact: Artifact, summaries: Sequence[Summary], protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON object of a benchmark."""
    peer = min((one for one in summaries if one.name in PEERS), key=lambda one: one.seconds("total", "wall_s"))
    own = min((one for one in summaries if one.name not in PEERS), key=lambda one: one.seconds("total", "wall_s"))

    waiting = max(one.seconds("total", "wall_s") / one.seconds("total", "cpu_s") for one in summaries)

    def ratios(one: Summary) -> dict[str, float]:
        return {kind: one.seconds("total", kind) / peer.seconds("total", kind) for kind in ("wall_s", "cpu_s")}

    return {
        "model": artifact.content.model,
        "variant": artifact.content.variant,
        "weights": artifact.content.source.weights,
        "content_sha256": artifact.manifest.content_sha256,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(),
        "protocol": protocol,
        "fastest_peer": peer.name,
        "busy": waiting > BUSY,
        "contestants": {
            one.name: {
                **one.to_json(),
                "ratio": ratios(one),
                "equal_tokens": agreeing_tokens(one.tokens, peer.tokens),
            }
            for one in summaries
        },
        "target": {"engine": own.name, "limit": LIMIT, "ratio": ratios(own), "met": ratios(own)["wall_s"] <= LIMIT},
    }


def environment() -> dict[str, Any]:
    """Return processor, cores, load, system and the versions of what was compared."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def print_results(results: dict[str, Any], console: Console) -> None:
    """Print the table and the verdict."""
    protocol = results["protocol"]
    console.print(
        f"{results['model']} {results['variant']}, {results['weights']} weights: {protocol['window_s']:g} s of audio, "
        f"{protocol['tokens']} tokens, {protocol['threads']} thread(s), median of {protocol['runs']} interleaved runs"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("encoder\nms", "token\nms", "total\nms", "ratio", "CPU\nratio", "equal\ntokens"):
        table.add_column(name, justify="right")
    for name, entry in results["contestants"].items():
        wall, ratio = entry["median"]["wall_s"], entry["ratio"]
        table.add_row(
            name,
            *(f"{1e3 * wall[part]:.{digits}f}" for part, digits in (("encoder", 1), ("token", 2), ("total", 0))),
            *(f"{ratio[kind]:.2f}" for kind in ("wall_s", "cpu_s")),
            f"{entry['equal_tokens']} of {protocol['tokens']}",
        )
    console.print(table)
    target = results["target"]
    console.print(
        f"{target['engine']} takes {target['ratio']['wall_s']:.2f} of the time of {results['fastest_peer']}, the "
        f"faster peer ({target['ratio']['cpu_s']:.2f} of its CPU time); the target of {target['limit']} is "
        f"{'met' if target['met'] else 'missed'}"
    )
    if results["busy"]:
        console.print("the machine was busy with something else: the times by the clock are worth little, run it again")


def write_results(results: dict[str, Any], folder: Path) -> Path:
    """Write <model>.json and <model>.svg into `folder`; returns the JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{results['model']}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    loader = jinja2.FileSystemLoader(FOLDER / "templates")
    chart = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    file.with_suffix(".svg").write_text(chart.get_template("chart.svg.j2").render(results), encoding="utf-8")
    return file


def bench(artifact: Artifact, audio: Path, runs: int, tokens: int, threads: int) -> dict[str, Any]:
    """Return the results of one benchmark.

    Raises
    ------
    InputError
        The artifact is not fp32 Whisper, which the peers could load, or its context has no room for the tokens.

    """
    content = artifact.content
    if (content.family, content.variant) != ("whisper", "fp32"):
        raise InputError(
            f"{artifact.path}: expected a whisper artifact in fp32, found {content.family} {content.variant}"
        )
    frontend = WhisperFrontend.model_validate(content.frontend)
    prompt = prompt_of(WhisperSettings.model_validate(content.settings))
    room = content.dims["n_text_ctx"] - len(prompt)
    if tokens > room:
        raise InputError(f"--tokens: expected at most {room} for {content.model}, found {tokens}")
    mel = window_of(audio, frontend)
    with tempfile.TemporaryDirectory() as scratch:
        contestants = open_contestants(artifact, threads, Path(scratch))
        summaries = measure(contestants, mel, prompt, tokens, runs)
    protocol = {
        "audio": audio.name,
        "window_s": frontend.n_samples / frontend.sample_rate,
        "prompt": prompt,
        "tokens": tokens,
        "threads": threads,
        "warm_up": "one round that does not count, without repeats: its tokens are those compared",
        "runs": runs,
        "order": "interleaved, one process",
        "decoding": "greedy, end token forbidden; the first token from the prompt's logits, one step for each other",
        "encoder": "ours includes the keys and values for cross-attention, the peers have them in the decoder's time",
        "precision": "float32",
        "peers": {
            "transformers eager": "modules and kv cache called in a loop, sdpa attention, without `generate`",
            "faster-whisper": "compute_type float32, beam_size 1",
        },
    }
    return results_of(artifact, summaries, protocol)


def main(
    model: Annotated[str, typer.Argument(help="Name or folder of an exported model.")],
    *,
    weights: Annotated[
        str | None, typer.Option(help="Export from here, `random` for example, instead of taking what is exported.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each contestant that count.")] = 7,
    tokens: Annotated[int, typer.Option(min=1, help="New tokens of each run.")] = 64,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each contestant.")] = 1,
    audio: Annotated[Path, typer.Option(help="Recording to fill the window with.")] = AUDIO,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = FOLDER / "results",
) -> None:
    """Compare our engines with transformers and faster-whisper in fp32 on the CPU."""
    console = Console()
    try:
        with tempfile.TemporaryDirectory() as exported:
            if weights is None:
                folder = find_artifact(model)
            else:
                from export.pipeline import export_model

                folder = export_model(
                    model, weights=weights, out=Path(exported), progress=lambda stage: console.print(f"export: {stage}")
                )
            results = bench(open_artifact(folder), audio, runs, tokens, threads)
    except AtlasportError as error:
        Console(stderr=True).print(str(error), highlight=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from error
    print_results(results, console)
    console.print(f"results: {write_results(results, out)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
