"""The GRU's recurrence in calls of 50 steps against torch's GRU over the whole, at lengths that end within a call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from export.families.cnn8rnn.checkpoint import Cnn8RnnCheckpoint
from export.families.cnn8rnn.source import SourceCnn8Rnn
from export.registry import REPOSITORY_ROOT
from runtime.artifact import open_artifact
from runtime.engines import open_engine
from runtime.engines.base import Floats
from runtime.families.cnn8rnn.network import Network

LENGTHS = [1, 2, 49, 50, 51, 100, 101, 250]


@pytest.fixture(scope="module", params=["onnxruntime", "torchscript"])
def network(sed_artifact: Path, request: pytest.FixtureRequest) -> Iterator[Network]:
    artifact = open_artifact(sed_artifact)
    engine = open_engine(artifact, request.param, threads=1)
    yield Network(artifact.content, engine, 4)
    engine.close()


@pytest.fixture(scope="module")
def source() -> SourceCnn8Rnn:
    return SourceCnn8Rnn(Cnn8RnnCheckpoint(REPOSITORY_ROOT / "pocket" / "sed-pocket"))


def frames(n_scores: int, seed: int) -> Floats:
    """Return dB [64, n_frames] with three frames more than the scores need."""
    rng = np.random.default_rng(seed)
    return (-30 + 20 * rng.standard_normal((64, 4 * n_scores + 3))).astype(np.float32)


def test_any_length_in_any_order_is_one_run_over_the_whole(network: Network, source: SourceCnn8Rnn) -> None:
    """Shorter ones behind longer ones, too, whose gates are still there as padding."""
    for place, n_scores in enumerate([*LENGTHS, *reversed(LENGTHS)]):
        logmel = frames(n_scores, place)
        found, expected = network.logits(logmel), source.logits(logmel)
        assert found.shape == (n_scores, 8)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), n_scores


def test_states_of_both_directions_are_those_of_torch(network: Network, source: SourceCnn8Rnn) -> None:
    """The backward direction begins with the recording's last frame, whatever fills the last call."""
    logmel = torch.from_numpy(frames(120, 7))[None]
    with torch.inference_mode():
        expected, _ = source.network.rnn(source.network.features(logmel))
    gates = source.run("gates", {"logmel": logmel.numpy()})["gates"]
    engine = network._engine
    states = engine.get(network.states(engine.put(gates, "float32"), 120))[0]
    np.testing.assert_allclose(states[0], expected[0, :, :32], atol=3e-6)
    np.testing.assert_allclose(states[1][::-1], expected[0, :, 32:], atol=3e-6)
