"""Training in two phases of a fixed number of steps; the same seed and versions give the same weights.

The network is the source implementation that export compares its graphs with, in the widths of the registry's
sed-pocket.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from export.families.cnn8rnn.checkpoint import FILTERS, WINDOW
from export.families.cnn8rnn.source import SourceCnn8Rnn
from export.families.cnn8rnn.standin import RandomCnn8Rnn
from export.registry import find_model
from pocket.training.sed.sounds import LABELS, draw_clip, targets
from runtime.families.cnn8rnn.settings import Cnn8RnnDims, Cnn8RnnFrontend, Cnn8RnnSettings

CLIP_S = 4.0
BATCH = 16
CROP = 64  # scores, 2.56 s: shorter than the clips, so that no two steps see the same
GAIN_DB = (-15.0, 10.0)
FLOOR_DB = -100.0  # of the power's logarithm, after the gain
DROPOUT = 0.05
PEAK_RATE, WARM_UP_STEPS = 3e-3, 50
CLIP_WEIGHT = 0.3  # of the loss on the whole crop, beside that on each score

FRONTEND, SETTINGS = Cnn8RnnFrontend(), Cnn8RnnSettings()
STEP_S = SETTINGS.frames_per_score * FRONTEND.hop_length / FRONTEND.sample_rate


@dataclass(frozen=True)
class Phase:
    """One run of the optimiser over clips of its own; `shares` are the probabilities of the kinds of sounds."""

    steps: int
    clips: int
    shares: tuple[float, ...] | None = None

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: warm-up, then half a cosine down to 1 %."""
        cosine = 0.5 * (1 + np.cos(np.pi * step / self.steps))
        return float(PEAK_RATE * min(1, (step + 1) / WARM_UP_STEPS) * (0.01 + 0.99 * cosine))


# Tones and chirps are what the first phase still confuses: the second has more of them.
PHASES = (
    Phase(steps=800, clips=1600),
    Phase(steps=600, clips=1200, shares=(0.22, 0.16, 0.26, 0.10, 0.10, 0.08, 0.08)),
)
TOTAL_STEPS = sum(phase.steps for phase in PHASES)


def new_source() -> SourceCnn8Rnn:
    """Return the untrained network with its front-end; torch's own first weights."""
    source = SourceCnn8Rnn(RandomCnn8Rnn(Cnn8RnnDims(**find_model("sed-pocket").dims)))
    for module in source.network.modules():
        # Also those of the normalisations' statistics.
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear | nn.GRU):
            module.reset_parameters()
    for name, block in source.network.named_children():
        if name.startswith("conv_block"):
            block.register_forward_hook(lambda own, _, output: functional.dropout(output, DROPOUT, own.training))
    return source


@dataclass(frozen=True)
class Examples:
    """N clips: dB f16 [N, n_mels, n_frames], and what sounds at each score, f32 [N, n_scores, n_classes]."""

    logmel: torch.Tensor
    heard: torch.Tensor

    def batch(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return crops of random clips, each louder or quieter by a random gain: dB f32, and what sounds."""
        chosen = torch.from_numpy(rng.integers(0, len(self.logmel), BATCH))
        first = int(rng.integers(0, self.heard.shape[1] - CROP + 1))
        frames = slice(first * SETTINGS.frames_per_score, (first + CROP) * SETTINGS.frames_per_score)
        gain = torch.from_numpy(rng.uniform(*GAIN_DB, (BATCH, 1, 1))).float()
        logmel = (self.logmel[chosen, :, frames].float() + gain).clamp(min=FLOOR_DB)
        return logmel, self.heard[chosen, first : first + CROP]


@torch.no_grad()
def draw_examples(source: SourceCnn8Rnn, phase: Phase, rng: np.random.Generator) -> Examples:
    """Return the clips of a phase."""
    logmel, heard = list[torch.Tensor](), list[torch.Tensor]()
    for _ in range(phase.clips):
        clip = draw_clip(CLIP_S, rng, shares=phase.shares)
        logmel.append(source.logmel(torch.from_numpy(clip.samples)[None])[0].half())
        heard.append(torch.from_numpy(targets(clip, STEP_S)))
    return Examples(torch.stack(logmel), torch.stack(heard))


def losses(logits: torch.Tensor, heard: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the binary cross-entropy of each score, and that of the crops' pooled scores, for [B, T, n_classes]."""
    scores = torch.sigmoid(logits).clamp(1e-7, 1 - 1e-7)
    pooled = scores.square().sum(1) / scores.sum(1)
    frame = functional.binary_cross_entropy_with_logits(logits, heard)
    clip = functional.binary_cross_entropy(pooled.clamp(1e-6, 1 - 1e-6), heard.amax(1))
    return frame, clip


def train_phase(
    network: nn.Module, examples: Examples, phase: Phase, rng: np.random.Generator, progress: Callable[[str], None]
) -> None:
    """Run one phase on `network` in place, with a fresh optimiser."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    network.train()
    for step in range(phase.steps):
        for group in optimiser.param_groups:
            group["lr"] = phase.rate(step)
        logmel, heard = examples.batch(rng)
        frame, clip = losses(network(logmel), heard)
        optimiser.zero_grad()
        torch.autograd.backward(frame + CLIP_WEIGHT * clip)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 100 == 0 or step + 1 == phase.steps:
            progress(f"step {step + 1} of {phase.steps}: scores {frame.item():.4f}, clips {clip.item():.4f}")
    network.eval()


def train(folder: Path, *, share: float = 1.0, seed: int = 7, progress: Callable[[str], None] = print) -> SourceCnn8Rnn:
    """Train a new model, `share` of all steps and clips, and save it in `folder` in the layout of the hub.

    Uses one thread: with more, sums come in another order and the weights are no longer the same twice.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    source = new_source()
    for index, whole in enumerate(PHASES, start=1):
        phase = replace(whole, steps=max(1, round(share * whole.steps)), clips=max(1, round(share * whole.clips)))
        rng = np.random.default_rng([seed, index])
        progress(f"phase {index} of {len(PHASES)}: {phase.clips} clips")
        train_phase(source.network, draw_examples(source, phase, rng), phase, rng, progress)
    save(source, folder)
    return source


def save(source: SourceCnn8Rnn, folder: Path) -> None:
    """Write weights, config.json and classes.txt."""
    dims = Cnn8RnnDims(**find_model("sed-pocket").dims)
    constants = RandomCnn8Rnn(dims)
    tensors = source.network.state_dict() | {name: constants.read(name) for name in (WINDOW, FILTERS)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Cnn8RnnSoundEventDetection"],
        "model_type": "cnn8rnn",
        "classes_num": len(LABELS),
        **FRONTEND.model_dump(),
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / SETTINGS.classes_file).write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
