"""Measure a sed-pocket folder on clips that no training has seen.

`python -m pocket.training.sed.evaluate pocket/sed-pocket` prints the results as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from export.families.cnn8rnn.checkpoint import Cnn8RnnCheckpoint
from export.families.cnn8rnn.source import SourceCnn8Rnn
from pocket.training.sed.sounds import LABELS, Clip, draw_clip, targets
from pocket.training.sed.train import STEP_S
from pocket.training.session import one_line_errors
from runtime.engines.base import Floats
from runtime.families.cnn8rnn.events import EventDetector
from runtime.families.cnn8rnn.heads import ClipPooling, scores_from_logits
from verify.events import Sound, paired

CLIP_S = 10.0
THRESHOLD = 0.5
MEDIAN = 3  # scores
# Another number of seeds than training has: never the same stream.
SEED = (12345,)
# Name and number of clips, and how far the noise lies below full level.
TEST_SETS: dict[str, tuple[int, float | None]] = {"test_8_to_40dB": (600, None), "test_5dB": (200, 5.0)}


class Counts:
    """True positives, false positives and false negatives by class."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, len(LABELS)))

    def add(self, true: Floats, found: Floats, expected: Floats) -> None:
        """Add by class, [n_classes] each: how many are right, found and expected."""
        self._counts += np.stack([true, found - true, expected - true])

    def f1(self) -> dict[str, Any]:
        """Return F1 over all classes' counts, the mean of the classes' F1, and these."""
        true, extra, missed = self._counts
        by_class = 2 * true / np.maximum(2 * true + extra + missed, 1)
        return {
            "micro": round(float(2 * true.sum() / max((2 * true + extra + missed).sum(), 1)), 4),
            "macro": round(float(by_class.mean()), 4),
            "per_class": {label: round(float(value), 3) for label, value in zip(LABELS, by_class, strict=True)},
        }


def by_class(sounds: Sequence[Sound]) -> Floats:
    """Return how many of the sounds each class has, f32 [n_classes]."""
    places = [LABELS.index(sound.label) for sound in sounds]
    return np.bincount(places, minlength=len(LABELS)).astype(np.float32)


@torch.inference_mode()
def scores_of(source: SourceCnn8Rnn, clip: Clip) -> Floats:
    """Return the scores f32 [n_scores, n_classes] of a clip."""
    logits = source.network(source.logmel(torch.from_numpy(clip.samples)[None]))[0]
    return scores_from_logits(logits.numpy())


def sounds_of(scores: Floats) -> list[Sound]:
    """Return the events in scores: above 0.5 after a median filter of three."""
    threshold = np.full(len(LABELS), THRESHOLD, np.float32)
    detector = EventDetector(threshold, threshold, MEDIAN)
    detector.push(scores)
    return [Sound(run.start * STEP_S, run.stop * STEP_S, LABELS[run.place]) for run in detector.finish()]


def evaluate_clips(source: SourceCnn8Rnn, clips: Sequence[Clip]) -> dict[str, Any]:
    """Return F1 of 40 ms scores, of clips and of events (200 ms collar), and how far events' edges are off."""
    frames, whole, events, moved = Counts(), Counts(), Counts(), list[float]()
    for clip in clips:
        heard = targets(clip, STEP_S)
        scores = scores_of(source, clip)[: len(heard)]
        above = (scores > THRESHOLD).astype(np.float32)
        frames.add((above * heard).sum(0), above.sum(0), heard.sum(0))

        pooling = ClipPooling(len(LABELS))
        pooling.push(scores)
        tagged, present = (pooling.result() > THRESHOLD).astype(np.float32), heard.max(axis=0)
        whole.add(tagged * present, tagged, present)

        found = sounds_of(scores)
        pairs = [(clip.sounds[own], found[index]) for index, own in paired(clip.sounds, found).items()]
        events.add(by_class([own for own, _ in pairs]), by_class(found), by_class(clip.sounds))
        moved += [abs(a - b) for own, other in pairs for a, b in ((own.onset, other.onset), (own.offset, other.offset))]
    return {
        "clips": len(clips),
        "frame_f1": frames.f1(),
        "clip_f1": whole.f1(),
        "event_f1": events.f1(),
        "median_edge_error_s": round(float(np.median(moved)), 3) if moved else None,
    }


def evaluate(folder: Path, share: float = 1.0) -> dict[str, Any]:
    """Return all figures for a model folder, on `share` of the test clips.

    Raises
    ------
    InputError
        The folder holds no complete Cnn8Rnn checkpoint.

    """
    source, rng = SourceCnn8Rnn(Cnn8RnnCheckpoint(folder)), np.random.default_rng(SEED)
    return {
        name: evaluate_clips(
            source, [draw_clip(CLIP_S, rng, snr_db=snr_db) for _ in range(max(1, round(share * count)))]
        )
        for name, (count, snr_db) in TEST_SETS.items()
    }


def main(model: Annotated[Path, typer.Argument(help="Folder of the model.")]) -> None:
    """Print the model's figures as JSON."""
    torch.set_num_threads(1)
    with one_line_errors():
        print(json.dumps(evaluate(model), indent=1))


if __name__ == "__main__":
    typer.run(main)
