from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.families.cnn8rnn.checkpoint import Cnn8RnnCheckpoint
from pocket.training.sed.evaluate import Counts, evaluate, sounds_of
from pocket.training.sed.sounds import LABELS
from pocket.training.sed.train import PHASES, TOTAL_STEPS, losses, new_source, train
from runtime.families.cnn8rnn.heads import ClipPooling
from verify.events import Sound

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "pocket" / "sed-pocket"
SHARE = 0.0015  # one or two steps a phase


def test_training_is_deterministic_and_its_folder_is_a_checkpoint(tmp_path: Path) -> None:
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        train(tmp_path / name, share=SHARE, seed=seed, progress=lambda _: None)
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again", "other"))
    assert first == again
    assert first != other

    found, shipped = Cnn8RnnCheckpoint(tmp_path / "first"), Cnn8RnnCheckpoint(SHIPPED)
    assert (found.dims, found.frontend, found.labels) == (shipped.dims, shipped.frontend, shipped.labels)
    trained, before = load_file(tmp_path / "first" / "model.safetensors"), load_file(SHIPPED / "model.safetensors")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in trained.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in before.items()
    }
    for name in (name for name in trained if name.startswith("melspec_extractor")):
        # The shipped model's front-end is torch's and another implementation of the filters.
        torch.testing.assert_close(trained[name], before[name], rtol=1e-5, atol=1e-7)


def test_training_moves_every_parameter(tmp_path: Path) -> None:
    torch.manual_seed(7)
    untrained = new_source().network.state_dict()
    trained = train(tmp_path, share=SHARE, seed=7, progress=lambda _: None).network.state_dict()
    assert [name for name in untrained if torch.equal(untrained[name], trained[name])] == []


def test_dropout_is_on_while_training_only() -> None:
    network, logmel = new_source().network, torch.randn(1, 64, 64)
    network.eval()
    assert torch.equal(network(logmel), network(logmel))
    network.train()
    assert not torch.equal(network(logmel), network(logmel))


def test_losses_are_of_scores_and_of_pooled_scores() -> None:
    generator = np.random.default_rng(0)
    logits, heard = generator.normal(size=(2, 5, 3)).astype(np.float32), generator.integers(0, 2, (2, 5, 3))
    scores = 1 / (1 + np.exp(-logits.astype(float)))
    pooled = []
    for clip in scores:
        pooling = ClipPooling(3)
        pooling.push(clip.astype(np.float32))
        pooled.append(pooling.result())

    def entropy(p: np.ndarray, y: np.ndarray) -> float:
        return float(-np.where(y == 1, np.log(p), np.log(1 - p)).mean())

    frame, clip = losses(torch.from_numpy(logits), torch.from_numpy(heard).float())
    assert float(frame) == pytest.approx(entropy(scores, heard), rel=1e-5)
    assert float(clip) == pytest.approx(entropy(np.stack(pooled), heard.max(axis=1)), rel=1e-5)


def test_the_schedule_counts_steps() -> None:
    assert TOTAL_STEPS == 1400
    for phase in PHASES:
        rates = [phase.rate(step) for step in range(phase.steps)]
        assert rates[0] < 0.1 * max(rates)
        assert rates[-1] < 0.02 * max(rates)
        assert phase.shares is None or sum(phase.shares) == pytest.approx(1)


def test_counts_give_f1() -> None:
    counts = Counts()
    right, found, expected = np.zeros((3, len(LABELS)))
    right[:2], found[:2], expected[:2] = (3, 1), (4, 1), (3, 3)
    counts.add(right, found, expected)
    f1 = counts.f1()
    assert f1["per_class"]["Sine tone"] == pytest.approx(2 * 3 / (4 + 3), abs=1e-3)
    assert f1["per_class"]["Chirp up"] == pytest.approx(2 * 1 / (1 + 3), abs=1e-3)
    assert f1["micro"] == pytest.approx(2 * 4 / (5 + 6), abs=1e-4)
    assert f1["macro"] == pytest.approx((6 / 7 + 2 / 4) / len(LABELS), abs=1e-4)


def test_events_are_runs_of_scores_above_a_half() -> None:
    scores = np.full((25, len(LABELS)), 0.1, np.float32)
    scores[5:15, 5] = 0.9
    scores[10, 5] = 0.2  # the median filter closes it
    scores[20, 0] = 0.9  # and drops this
    assert sounds_of(scores) == [Sound(0.2, 0.6, "Siren")]


def test_the_shipped_weights_know_the_sounds_and_damaged_ones_do_not(tmp_path: Path) -> None:
    results = evaluate(SHIPPED, share=0.02)
    assert results["test_8_to_40dB"]["frame_f1"]["micro"] > 0.95
    assert results["test_8_to_40dB"]["clip_f1"]["micro"] > 0.95
    assert results["test_8_to_40dB"]["event_f1"]["micro"] > 0.8
    assert results["test_5dB"]["frame_f1"]["micro"] < results["test_8_to_40dB"]["frame_f1"]["micro"]

    damaged = shutil.copytree(SHIPPED, tmp_path / "damaged")
    weights = load_file(SHIPPED / "model.safetensors")
    for name in ("fc_audioset.weight", "fc_audioset.bias"):
        weights[name] = weights[name].roll(1, 0).contiguous()
    (damaged / "model.safetensors").unlink()
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    assert evaluate(damaged, share=0.02)["test_8_to_40dB"]["frame_f1"]["micro"] < 0.5


def retrain(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pocket.training.sed", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_does_everything_once(tmp_path: Path) -> None:
    run = retrain("--share", str(SHARE), "--out", str(tmp_path / "new"))
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert set(results["results"]) == {"test_8_to_40dB", "test_5dB"}
    for figures in results["results"].values():
        assert all(0 <= figures[kind]["micro"] <= 1 for kind in ("frame_f1", "clip_f1", "event_f1"))
    Cnn8RnnCheckpoint(tmp_path / "new" / "model")


def test_the_shipped_folder_is_never_written_to() -> None:
    before = (SHIPPED / "model.safetensors").read_bytes()
    run = retrain("--out", str(SHIPPED))
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "--out" in run.stderr
    assert (SHIPPED / "model.safetensors").read_bytes() == before
