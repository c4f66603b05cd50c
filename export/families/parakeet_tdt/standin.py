"""Stand-ins for WEIGHTS=random: tensors of sane size, a vocabulary of made-up words, a few tokens a second."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from export.checkpoint import RandomCheckpoint
from export.families.parakeet_tdt.modules import Parakeet
from export.fastconformer.modules import parameter_shapes
from export.fastconformer.standin import (
    BLANK_GAIN,
    TOKENS_PER_SECOND,
    blank_bias,
    centred,
    mean_and_std,
    standin_tokenizer,
)
from export.fastconformer.transformers_folder import TOKENIZER_FILE, filters, hann_window
from export.safetensors_writer import TensorInfo
from runtime.families.parakeet_tdt.settings import ParakeetDims, ParakeetSettings
from runtime.fastconformer.settings import FastConformerFrontend

_OUTPUTS = "joint.joint_net.2"
# Gains over fan-in: the prediction net's outputs have a standard deviation of a tenth, the joint net's frames of 1.
_GAINS = {"joint.pred": 8.0, _OUTPUTS: 2.0}
# The standard deviation of the joint net's sums behind its ReLU, which is 0.58 of that before it.
_LOGIT_STD = _GAINS[_OUTPUTS] * 0.58 * 1.28
# The bias of duration 0 in standard deviations: a step that does not move is as rare as in speech, some percent.
_STILL = -1.6


class RandomParakeet:
    """A Parakeet-TDT of the given dims with random weights; the same dims give the same bytes.

    Greedy search over any sound emits about TOKENS_PER_SECOND: every weight row sums to zero, so that what does not
    change from frame to frame hardly counts, and the blank's bias is set from the share of steps that shall emit.
    Measured on speech and noise: 3.2 to 4.4 with the dims of parakeet-tdt-0.6b-v2, 4.0 to 4.4 with those of v3.
    """

    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, dims: ParakeetDims) -> None:
        self.dims = dims
        self.frontend = FastConformerFrontend(n_mels=dims.n_mels)
        self.settings = ParakeetSettings(durations=tuple(range(dims.n_durations)), tokenizer_file=TOKENIZER_FILE)
        self.tokenizer = standin_tokenizer(dims.n_vocab).to_str().encode()
        self._checkpoint = RandomCheckpoint(parameter_shapes(lambda: Parakeet(dims)), _mean_and_std)
        self.tensors: Mapping[str, TensorInfo] = self._checkpoint.tensors
        self.window = hann_window(self.frontend)
        self.filters = filters(self.frontend)

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""
        tensor = self._checkpoint.read(name)
        if not name.startswith("decoder."):
            tensor = centred(tensor)
        blank = self.dims.blank
        if name == "decoder.prediction.embed.weight":
            tensor[blank] = 0.0
        elif name == f"{_OUTPUTS}.weight":
            tensor[blank] *= BLANK_GAIN
        elif name == f"{_OUTPUTS}.bias":
            tensor[blank] = blank_bias(self.dims.n_vocab, share_of_steps(self.dims, self.frontend), _LOGIT_STD)
            tensor[blank + 1] = _STILL * _LOGIT_STD
        return tensor


def share_of_steps(dims: ParakeetDims, frontend: FastConformerFrontend) -> float:
    """Return the share of steps that emit where TOKENS_PER_SECOND do; durations but 0 are equally likely."""
    frames_a_second = frontend.sample_rate / frontend.hop_length / dims.subsampling_factor
    steps_a_second = frames_a_second / (sum(range(dims.n_durations)) / (dims.n_durations - 1))
    return TOKENS_PER_SECOND / steps_a_second


def _mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    return (0.0, 1.0) if name == "decoder.prediction.embed.weight" else mean_and_std(name, shape, _GAINS)
