"""Sound events the plain way: whole arrays, one class after the other; and recordings made from the samples."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from runtime.artifact import Artifact, open_artifact
from runtime.engines import open_engine
from runtime.families.cnn8rnn.recognizer import Cnn8RnnRecognizer

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
RATE, HOP, STEP_S = 32000, 320, 0.04

# Class, first score, score behind the last, highest score.
PlainEvent = tuple[int, int, int, float]


def plain_events(
    scores: NDArray, high: list[float], low: list[float], filters: tuple[int, int, int] = (1, 0, 1)
) -> list[PlainEvent]:
    """Events in scores [n, n_classes], by start. The median filter is applied to what is above a threshold.

    `filters` has the median's length, the longest gap to merge and the shortest event to keep.
    """
    median, gap, shortest = filters
    padded = np.pad(scores, ((median // 2, median // 2), (0, 0)), mode="edge")
    neighbours = np.stack([padded[shift : shift + len(scores)] for shift in range(median)])
    events = []
    for place in range(scores.shape[1]):
        above_low, above_high = (
            (neighbours[:, :, place] > limit).sum(axis=0) > median // 2
            for limit in (np.float32(low[place]), np.float32(high[place]))
        )
        value = np.median(neighbours[:, :, place], axis=0)
        found: list[list[int]] = []
        for is_above, group in groupby(range(len(scores)), key=lambda index: above_low[index]):
            run = list(group)
            if not is_above or not above_high[run].any():
                continue
            if found and run[0] - found[-1][1] <= gap:
                found[-1][1] = run[-1] + 1
            else:
                found.append([run[0], run[-1] + 1])
        # A merged event's highest score cannot lie in the gap: what is above low there has no score above high.
        events += [(place, a, b, float(value[a:b].max())) for a, b in found if b - a >= shortest]
    return sorted(events, key=lambda event: (event[1], event[0]))


def clip(name: str) -> NDArray[np.float32]:
    return soundfile.read(SAMPLES / name, dtype="float32")[0]


def long_recording(seconds: float) -> NDArray[np.float32]:
    """The three clips in turn, no two stretches equal."""
    clips = [clip(f"sed_{number}.flac") for number in (1, 2, 3)]
    parts = [np.roll(clips[i % 3], 7001 * i) * (0.4 + 0.4 * (i % 7) / 7) for i in range(int(seconds // 6) + 1)]
    return np.concatenate(parts)[: round(seconds * RATE)]


def write(path: Path, samples: NDArray[np.float32], rate: int = RATE) -> Path:
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def recognizer_of(path: Path, engine: str = "onnxruntime", **settings: int) -> Cnn8RnnRecognizer:
    """The artifact's recogniser with some of its settings changed."""
    artifact = open_artifact(path)
    content = artifact.content.model_copy(update={"settings": {**artifact.content.settings, **settings}})
    changed = Artifact(path, artifact.manifest.model_copy(update={"content": content}))
    return Cnn8RnnRecognizer(changed, open_engine(changed, engine, threads=1))


def plain_scores(recognizer: Cnn8RnnRecognizer, samples: NDArray[np.float32]) -> NDArray:
    """Scores f64 [n, n_classes] of one run over the whole recording."""
    logits = recognizer.logits(recognizer.logmel(samples)).astype(np.float64)
    return np.maximum(1 / (1 + np.exp(-logits)), 1e-7)
