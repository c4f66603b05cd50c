"""Stand-ins for WEIGHTS=random: tensors of sane size, a vocabulary of made-up words, a few tokens a second."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist

import torch

from export.checkpoint import RandomCheckpoint
from export.families.parakeet_tdt.modules import Parakeet
from export.fastconformer.modules import parameter_shapes
from export.fastconformer.standin import mean_and_std, standin_tokenizer
from export.fastconformer.transformers_folder import TOKENIZER_FILE, filters, hann_window
from export.safetensors_writer import TensorInfo
from runtime.families.parakeet_tdt.settings import ParakeetDims, ParakeetSettings
from runtime.fastconformer.settings import FastConformerFrontend

SEED = 0
# What speech has, about.
_TOKENS_PER_SECOND = 3.5
# The blank's logit varies this much more than a token's: the share of blanks then depends little on the tokens.
_BLANK_GAIN = 3.0
_OUTPUTS = "joint.joint_net.2"
# Gains over fan-in: the prediction net's outputs have a standard deviation of a tenth, the joint net's frames of 1.
_GAINS = {"joint.pred": 8.0, _OUTPUTS: 2.0}
# The standard deviation of the joint net's sums behind its ReLU, which is 0.58 of that before it.
_LOGIT_STD = _GAINS[_OUTPUTS] * 0.58 * 1.28
# The bias of duration 0 in standard deviations: a step that does not move is as rare as in speech, some percent.
_STILL = -1.6


class RandomParakeet:
    """A Parakeet-TDT of the given dims with random weights; the same dims give the same bytes.

    Greedy search over any sound emits about _TOKENS_PER_SECOND: every weight row sums to zero, so that what does not
    change from frame to frame hardly counts, and the blank's bias is set from the share of steps that shall emit.
    Measured on speech and noise: 3.2 to 4.4 with the dims of parakeet-tdt-0.6b-v2, 4.0 to 4.4 with those of v3.
    """

    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int | None = SEED

    def __init__(self, dims: ParakeetDims) -> None:
        self.dims = dims
        self.frontend = FastConformerFrontend(n_mels=dims.n_mels)
        self.settings = ParakeetSettings(durations=tuple(range(dims.n_durations)), tokenizer_file=TOKENIZER_FILE)
        self.tokenizer = standin_tokenizer(dims.n_vocab).to_str().encode()
        self._checkpoint = RandomCheckpoint(parameter_shapes(lambda: Parakeet(dims)), _mean_and_std, SEED)
        self.tensors: Mapping[str, TensorInfo] = self._checkpoint.tensors
        self.window = hann_window(self.frontend)
        self.filters = filters(self.frontend)

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""
        tensor = self._checkpoint.read(name)
        if tensor.dim() > 1 and not name.startswith("decoder."):
            # In float64, so that the order of the sum, which depends on the CPU, does not show.
            tensor -= tensor.mean(dim=tuple(range(1, tensor.dim())), keepdim=True, dtype=torch.float64).float()
        blank = self.dims.blank
        if name == "decoder.prediction.embed.weight":
            tensor[blank] = 0.0
        elif name == f"{_OUTPUTS}.weight":
            tensor[blank] *= _BLANK_GAIN
        elif name == f"{_OUTPUTS}.bias":
            tensor[blank] = blank_bias(self.dims, self.frontend)
            tensor[blank + 1] = _STILL * _LOGIT_STD
        return tensor


def blank_bias(dims: ParakeetDims, frontend: FastConformerFrontend) -> float:
    """Return the bias of the blank's logit that lets _TOKENS_PER_SECOND be emitted.

    Token logits are independent and normal, as the weights' rows are, and their largest has the median q of V normal
    values; the blank's is normal, too, with _BLANK_GAIN times their standard deviation. Durations but 0 are equally
    likely.
    """
    frames_a_second = frontend.sample_rate / frontend.hop_length / dims.subsampling_factor
    steps_a_second = frames_a_second / (sum(range(dims.n_durations)) / (dims.n_durations - 1))
    normal = NormalDist()
    largest = normal.inv_cdf(0.5 ** (1 / dims.n_vocab))
    share = min(_TOKENS_PER_SECOND / steps_a_second, 0.9)
    return _LOGIT_STD * (largest - _BLANK_GAIN * normal.inv_cdf(share))


def _mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    return (0.0, 1.0) if name == "decoder.prediction.embed.weight" else mean_and_std(name, shape, _GAINS)
