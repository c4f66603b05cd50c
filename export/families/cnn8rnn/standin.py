"""Stand-ins for WEIGHTS=random: tensors of sane size under the checkpoint's names, and made-up class names."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import numpy as np
import torch

from export.checkpoint import RandomCheckpoint
from export.families.cnn8rnn.checkpoint import FILTERS, WINDOW, tensor_shapes
from runtime.families.cnn8rnn.settings import Cnn8RnnDims, Cnn8RnnFrontend, Cnn8RnnSettings
from runtime.mel import slaney_filters

# Log-mel frames of speech and noise have a mean of -30 dB and a standard deviation of 20.
_INPUT_STATISTICS = {"bn0.running_mean": (-30.0, 8.0), "bn0.running_var": (400.0, 40.0)}
_NORM = re.compile(r"bn0|conv_block\d\.bn\d")
_GAINS = {"conv_block1.conv1": 2.0, "fc_audioset": 4.0}


class RandomCnn8Rnn:
    """A Cnn8Rnn of the given dims with random weights; the same dims give the same bytes."""

    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    settings = Cnn8RnnSettings()

    def __init__(self, dims: Cnn8RnnDims) -> None:
        self.dims = dims
        self.frontend = Cnn8RnnFrontend(n_mels=dims.n_mels)
        self.labels = tuple(f"Class {index}" for index in range(dims.n_classes))
        self._checkpoint = RandomCheckpoint(tensor_shapes(dims, self.frontend), _mean_and_std)
        self.tensors = self._checkpoint.tensors

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""
        if name == WINDOW:
            sample = np.arange(self.frontend.n_fft)
            return torch.from_numpy(0.5 - 0.5 * np.cos(2 * np.pi * sample / self.frontend.n_fft)).float()
        if name == FILTERS:
            return mel_filters(self.frontend)
        tensor = self._checkpoint.read(name)
        if tensor.dim() > 1 and not name.startswith("rnn.weight_hh"):
            # What goes in is nowhere negative: its mean would outweigh what changes from frame to frame.
            # In float64, so that the order of the sum, which depends on the CPU, does not show.
            tensor -= tensor.mean(dim=tuple(range(1, tensor.dim())), keepdim=True, dtype=torch.float64).float()
        return tensor


def _mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Scale by fan-in: activations stay near unit size, and logits differ by 1 to 2 in time and between classes."""
    module, _, kind = name.rpartition(".")
    if name in _INPUT_STATISTICS:
        return _INPUT_STATISTICS[name]
    if _NORM.fullmatch(module):
        return {"weight": (1.0, 0.1), "running_var": (1.0, 0.1), "bias": (-0.2, 0.2)}.get(kind, (0.0, 0.1))
    if len(shape) == 1:
        # Most classes are not heard most of the time.
        return (-5.0 if name == "fc_audioset.bias" else 0.0), 0.1
    return 0.0, _GAINS.get(module, 1.5) * prod(shape[1:]) ** -0.5


def mel_filters(frontend: Cnn8RnnFrontend) -> torch.Tensor:
    """Return the mel filter bank [n_fft // 2 + 1, n_mels] f32; `power @ filters` is the mel spectrum."""
    sizes = (frontend.sample_rate, frontend.n_fft, frontend.n_mels)
    return torch.from_numpy(slaney_filters(*sizes, frontend.f_min, frontend.f_max)).float()
