"""Retrain sed-pocket: sounds, training, evaluation (`make pocket MODEL=sed-pocket`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pocket.training.session import check_new, one_line_errors, timed_progress


def retrain(out: Path, share: float, seed: int) -> None:
    """Make a new model in `out`/model.

    Raises
    ------
    InputError
        `out` holds something already.

    """
    check_new(out)
    progress = timed_progress()

    from pocket.training.sed.evaluate import evaluate
    from pocket.training.sed.train import train

    folder = out / "model"
    train(folder, share=share, seed=seed, progress=progress)
    results = {"seed": seed, "share": share, "results": evaluate(folder, share)}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    progress(f"model {folder}, results {out / 'results.json'}")


def main(
    out: Annotated[Path, typer.Option(help="New folder for model and results.")] = Path(".cache/sed-pocket"),
    share: Annotated[
        float, typer.Option(min=0.001, max=1, help="Share of steps, clips and test clips; small ones are a try-out.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 7,
) -> None:
    """Retrain sed-pocket on synthetic sounds; the weights in the repository stay as they are."""
    with one_line_errors():
        retrain(out, share, seed)


if __name__ == "__main__":
    typer.run(main)
