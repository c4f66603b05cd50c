"""Retrain whisper-pocket: corpus, tokenizer, training, alignment heads, evaluation (`make pocket`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pocket.training.session import check_new, one_line_errors, timed_progress
from pocket.training.whisper.synthesize import read_utterances, write_corpus
from pocket.training.whisper.tokenizer import write_tokenizer

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
    check_new(out)
    progress = timed_progress()
    if corpus is None:
        corpus = out / "corpus"
        write_corpus(corpus, utterances, seed=seed, progress=progress)
    training, unseen = read_utterances(corpus / "train.npz"), read_utterances(corpus / "unseen_voice.npz")

    # torch and transformers load only now, so that a missing espeak-ng is told at once.
    from pocket.training.whisper.evaluate import evaluate, quiet_transformers
    from pocket.training.whisper.heads import head_errors, write_alignment_heads
    from pocket.training.whisper.train import TOTAL_STEPS, train

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
    out: Annotated[Path, typer.Option(help="New folder for all of it.")] = Path(".cache/whisper-pocket"),
    utterances: Annotated[int, typer.Option(min=20, help="Utterances to train on.")] = SHIPPED_UTTERANCES,
    steps: Annotated[int | None, typer.Option(min=3, help="Training steps; default: all of the schedule.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 7,
    corpus: Annotated[Path | None, typer.Option(help="Corpus of an earlier run, instead of a new one.")] = None,
) -> None:
    """Retrain whisper-pocket on synthetic speech; the weights in the repository stay as they are."""
    with one_line_errors():
        retrain(out, utterances, steps, seed, corpus)


if __name__ == "__main__":
    typer.run(main)
