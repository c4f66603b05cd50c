"""Writes silero_spans.json, what the tests of VAD compare with: probabilities and the spans that silero makes of them.

    pip install --no-deps silero-vad==6.2.3   # and torch
    python tests/make_silero_spans.py FOLDER

FOLDER has the recordings of samples/ and tests/real/audio, of which mixtures are made. Probabilities are silero's own,
by its TorchScript file, rounded; silero makes the spans of the rounded ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE, CHUNK = 16000, 512
OPTIONS: list[dict[str, Any]] = [
    {},
    {"min_silence_duration_ms": 2000, "speech_pad_ms": 400, "min_speech_duration_ms": 0},
    {"threshold": 0.3, "neg_threshold": 0.1},
    {"threshold": 0.8, "speech_pad_ms": 0},
    {"min_silence_duration_ms": 0, "min_speech_duration_ms": 0},
    {"max_speech_duration_s": 3.0},
    {"max_speech_duration_s": 0.9, "speech_pad_ms": 200, "min_silence_duration_ms": 500},
    {"max_speech_duration_s": 1.5, "threshold": 0.1, "min_silence_duration_ms": 3000},
]


def mixtures(find: Callable[[str], Path]) -> dict[str, np.ndarray]:
    """Return recordings f32 [n] behind each other, with silence, noise and music between them; `find` tells paths."""

    def read(name: str) -> np.ndarray:
        samples, rate = soundfile.read(find(name), dtype="float32")
        assert rate == RATE
        return samples

    def zeros(seconds: float) -> np.ndarray:
        return np.zeros(int(RATE * seconds), np.float32)

    def noise(seconds: float, level: float) -> np.ndarray:
        return (level * np.random.default_rng(0).standard_normal(int(RATE * seconds))).astype(np.float32)

    austen, libri = read("librivox_austen_0870.wav"), read("librispeech_84-121550-0000.flac")
    ja, cards = read("common_voice_ja_38833628.wav"), read("cards_005.wav")
    music = read("silero_test.opus")
    return {
        "one": libri,
        "behind silence": np.concatenate([zeros(32), ja]),
        "behind noise": np.concatenate([noise(32, 0.01), austen]),
        "behind music": np.concatenate([music, music, cards]),
        "pauses": np.concatenate([austen, zeros(10), libri, noise(20, 0.003), cards, zeros(60), ja]),
        "no speech": noise(5, 0.05),
        "shorter than a chunk": libri[:300],
    }


def random_probabilities() -> dict[str, tuple[np.ndarray, int]]:
    """Return probabilities that go up and down at several speeds, and a number of samples."""
    rng = np.random.default_rng(0)
    found = {}
    for number in range(24):
        walk = np.cumsum(rng.standard_normal(300)) * rng.uniform(0.1, 2) + rng.normal()
        found[f"random {number}"] = 1 / (1 + np.exp(-walk)), int(300 * CHUNK - rng.integers(0, CHUNK))
    return found


def main() -> None:
    """Write the file."""
    import torch
    from silero_vad import load_silero_vad
    from silero_vad.utils_vad import get_speech_timestamps_from_probs

    model = load_silero_vad()
    heard = random_probabilities()
    for name, samples in mixtures(Path(sys.argv[1]).joinpath).items():
        padded = np.pad(samples, (0, -len(samples) % CHUNK))
        model.reset_states()
        chunks = torch.from_numpy(padded).split(CHUNK)
        heard[name] = np.array([model(chunk, RATE).item() for chunk in chunks]), len(samples)
    cases = []
    for name, (probabilities, n_samples) in heard.items():
        rounded = [round(float(probability), 3) for probability in probabilities]
        spans = [
            [
                [span["start"], span["end"]]
                for span in get_speech_timestamps_from_probs(rounded, audio_length_samples=n_samples, **options)
            ]
            for options in OPTIONS
        ]
        cases.append({"name": name, "n_samples": n_samples, "probabilities": rounded, "spans": spans})
    target = Path(__file__).with_name("silero_spans.json")
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    target.write_text(f'{{"options": {json.dumps(OPTIONS)},\n"cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
