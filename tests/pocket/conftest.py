from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch

from pocket.training.whisper.synthesize import SAMPLE_RATE, Utterance

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


@pytest.fixture(scope="session")
def utterances() -> list[Utterance]:
    """The phrases in the repository's synthetic recordings, cut out: a corpus that needs no espeak-ng."""
    found = []
    described = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
    for name in ("short_en.wav", "short_de.wav", "short_es.wav", "long_en.wav"):
        pcm, rate = soundfile.read(SAMPLES / name, dtype="int16")
        assert rate == SAMPLE_RATE
        for segment in described[name]["segments"]:
            spoken = pcm[int(segment["start"] * rate) : int(segment["end"] * rate)]
            found.append(Utterance(spoken, described[name]["language"], segment["text"], segment["english"]))
    return found


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    """Training changes how torch computes for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
