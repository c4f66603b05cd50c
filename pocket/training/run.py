"""Retrain whisper-pocket: corpus, tokenizer, training, alignment heads, evaluation (`make pocket`)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pocket.training.synthesize import read_utterances, write_corpus
from pocket.training.tokenizer import write_tokenizer
from runtime.errors import AtlasportError, InputError

SHIPPED_UTTERANCES = 25500
ALIGNED_UTTERANCES = 120


def retrain(out: Path, utterances: int, steps: int | None, seed: int, corpus: Path | None) -> None:
    """Make a new model in `out`/model, and in `out`/corpus the speech for it unless `corpus` names a folder with some.

    Raises
    ------
    InputError
        `out` holds something already, or `corpus` is not a corpus.
    EnvironmentNotFitError
        espeak-ng is not installed.

    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"expected an empty or new folder, found files in {out}; choose another with --out")
    begun, console = time.monotonic(), Console()

    def progress(line: str) -> None:
        console.print(f"{time.monotonic() - begun:7.0f} s  {line}", highlight=False)

    if corpus is None:
        corpus = out / "corpus"
        write_corpus(corpus, utterances, seed=seed, progress=progress)
    training, unseen = read_utterances(corpus / "train.npz"), read_utterances(corpus / "unseen_voice.npz")

    # torch and transformers load only now, so that a missing espeak-ng is told at once.
    from pocket.training.evaluate import evaluate, quiet_transformers
    from pocket.training.heads import head_errors, write_alignment_heads
    from pocket.training.train import TOTAL_STEPS, train

    quiet_transformers()
    folder, steps = out / "model", steps or TOTAL_STEPS
    write_tokenizer(folder, seed)
    model = train(folder, training, steps=steps, seed=seed, progress=progress)
    errors = head_errors(folder, model, unseen[:: max(1, len(unseen) // ALIGNED_UTTERANCES)])
    progress(f"alignment heads {write_alignment_heads(folder, errors)}")
    results = {"steps": steps, "utterances": len(training), "seed": seed, **evaluate(folder, corpus)}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    progress(f"model {folder}, results {out / 'results.json'}")


def main(
    out: Annotated[Path, typer.Option(help="New folder for corpus, model and results.")] = Path(".cache/pocket"),
    utterances: Annotated[int, typer.Option(min=20, help="Utterances to train on.")] = SHIPPED_UTTERANCES,
    steps: Annotated[int | None, typer.Option(min=3, help="Training steps; default: all of the schedule.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 7,
    corpus: Annotated[Path | None, typer.Option(help="Corpus of an earlier run, instead of a new one.")] = None,
) -> None:
    """Retrain whisper-pocket on synthetic speech; the weights in the repository stay as they are."""
    try:
        retrain(out, utterances, steps, seed, corpus)
    except AtlasportError as error:
        Console(stderr=True).print(str(error), highlight=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from error


if __name__ == "__main__":
    typer.run(main)
