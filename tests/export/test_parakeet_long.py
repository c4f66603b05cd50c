"""Parakeet's encoder on long recordings, where NeMo's own export ends (400 s) and beyond."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from export.families.parakeet_tdt.model import ParakeetModel
from export.families.parakeet_tdt.source import SourceParakeet
from export.weights import resolve_weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
FRAMES_PER_SECOND = 100
# What 15 minutes take at once: 6.5 matrices of 4 heads by 11250 by 11250 frames in float32 in ONNX Runtime.
MEMORY_15_MIN = 14e9


def features(seconds: int) -> np.ndarray:
    """Return [1, 128, frames + 1] f32 that change from second to second, the last frame zero."""
    generator = np.random.default_rng(0)
    count = seconds * FRAMES_PER_SECOND
    slow = np.repeat(generator.standard_normal((128, seconds)), FRAMES_PER_SECOND, axis=1)
    found = (0.7 * slow + 0.7 * generator.standard_normal((128, count))).astype(np.float32)
    return np.pad(found, ((0, 0), (0, 1)))[None]


def encoder(folder: Path, kind: str) -> Any:
    """Return a function of features and their number to frames [T, J]."""
    if kind == "onnx":
        session = onnxruntime.InferenceSession(folder / "encoder.onnx", providers=["CPUExecutionProvider"])
        return lambda x, count: session.run(None, {"features": x, "features_len": np.array([count])})[0][0]
    loaded = torch.jit.load(folder / "model.ts")

    def run(x: np.ndarray, count: int) -> np.ndarray:
        with torch.inference_mode():
            frames: np.ndarray = loaded.encoder(torch.from_numpy(x), torch.tensor([count]))[0][0].numpy()
        return frames

    return run


def relative_l2(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_402_seconds_are_transformers_encoder(parakeet_artifact: Path, kind: str):
    source = ParakeetModel(resolve_weights("parakeet-pocket", None)).source(parakeet_artifact / "weights.safetensors")
    assert isinstance(source, SourceParakeet)
    x = features(402)
    count = x.shape[2] - 1
    expected = source.run("encoder", {"features": x, "features_len": np.array([count])})["frames"][0]
    assert relative_l2(encoder(parakeet_artifact, kind)(x, count), expected) <= 1e-4


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_15_minutes_run_and_their_padding_does_not_show(parakeet_artifact: Path, kind: str):
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < MEMORY_15_MIN:
        pytest.skip(f"takes {MEMORY_15_MIN / 1e9:g} GB of memory")
    run = encoder(parakeet_artifact, kind)
    short = features(60)
    count = short.shape[2] - 1
    padded = np.pad(short, ((0, 0), (0, 0), (0, 840 * FRAMES_PER_SECOND)), constant_values=5.0)
    frames = run(padded, count)
    assert frames.shape[0] == 11_251
    assert not frames[750:].any()
    assert relative_l2(frames[:750], run(short, count)[:750]) <= 1e-5
