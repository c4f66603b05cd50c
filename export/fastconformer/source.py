"""The source of front-end and encoder: torch.stft, and transformers' encoder, nothing folded or unrolled."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from runtime.fastconformer.settings import FastConformerDims, FastConformerFrontend

_POWER_FLOOR, _STD_FLOOR = 2.0**-24, 1e-5
# torch.nn.BatchNorm1d's default.
_EPSILON = 1e-5
_NORM = re.compile(r"(?P<conv>.*\.conv)\.batch_norm\.(?P<part>\w+)")


class SourceFrontend:
    """NeMo's features by torch.stft; window [win_length] and filters [n_mels, n_fft // 2 + 1] are a checkpoint's."""

    def __init__(self, frontend: FastConformerFrontend, window: torch.Tensor, filters: torch.Tensor) -> None:
        self._frontend, self.window, self._filters = frontend, window, filters

    def features(self, audio: torch.Tensor, length: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return NeMo's features: of each recording alone, beyond which all is zero."""
        frontend = self._frontend
        features = torch.zeros(len(audio), frontend.n_mels, audio.shape[1] // frontend.hop_length + 1)
        counts = length // frontend.hop_length
        for row, samples, size, count in zip(features, audio, length.tolist(), counts.tolist(), strict=True):
            row[:, :count] = self._normalized(samples[:size].double(), count)
        return {"features": features, "features_len": counts}

    def _normalized(self, samples: torch.Tensor, count: int) -> torch.Tensor:
        """Return the `count` frames of one recording, computed in float64 where one is zero that NeMo rounds."""
        frontend = self._frontend
        emphasized = torch.cat([samples[:1], samples[1:] - frontend.preemphasis * samples[:-1]])
        spectrum = torch.stft(
            emphasized,
            frontend.n_fft,
            frontend.hop_length,
            frontend.win_length,
            self.window.double(),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = self._filters.double() @ spectrum.abs().square()
        # Less the floor's own logarithm, which normalisation removes: silence is zero, not what rounding leaves.
        logmel = (torch.log(power + _POWER_FLOOR) - math.log(_POWER_FLOOR))[:, :count]
        std = logmel.std(dim=1, keepdim=True) if count > 1 else torch.zeros(len(logmel), 1)
        return (logmel - logmel.mean(dim=1, keepdim=True)) / (std + _STD_FLOOR)


class EncoderWeights:
    """A weights.safetensors as a checkpoint holds it: a normalisation that adds a bias only."""

    def __init__(self, weights: Path) -> None:
        # Mapped, not read: pages come in as they are used.
        self.tensors: dict[str, torch.Tensor] = load_file(weights)

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor by NeMo's name."""
        tensors = self.tensors
        if match := _NORM.fullmatch(name):
            bias = tensors[f"{match['conv']}.depthwise_conv.bias"]
            if match["part"] == "bias" and f"{match['conv']}.pointwise_conv1.bias" not in tensors:
                return bias  # a network without biases has none in its convolution
            values = {"weight": 1.0, "running_var": 1.0 - _EPSILON}
            return torch.full_like(bias, values.get(match["part"], 0.0))
        tensor = tensors[name]
        return tensor[:, :, None] if re.search(r"\.pointwise_conv\d\.weight", name) else tensor


def encoder_config(dims: FastConformerDims) -> dict[str, Any]:
    """Return what transformers' configuration of the encoder is made of."""
    return {
        "hidden_size": dims.d_model,
        "num_hidden_layers": dims.n_layers,
        "num_attention_heads": dims.n_heads,
        "intermediate_size": dims.d_ff,
        "attention_bias": bool(dims.use_bias),
        "convolution_bias": bool(dims.use_bias),
        "conv_kernel_size": dims.conv_kernel,
        "subsampling_factor": dims.subsampling_factor,
        "subsampling_conv_channels": dims.subsampling_channels,
        "num_mel_bins": dims.n_mels,
        "scale_input": bool(dims.xscaling),
        "attn_implementation": "eager",
    }


def give_frequencies(encoder: Any) -> None:
    """Give transformers' encoder, on the meta device, the one tensor that is not stored."""
    positions = encoder.encode_positions
    positions.inv_freq = positions.compute_default_relative_positional_parameters(encoder.config)


def cleaned(features: torch.Tensor, features_len: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features as transformers takes them, [B, n_frames, n_mels], and bool [B, n_frames]: those that count.

    NeMo masks what transformers' first convolution mixes in.
    """
    live = torch.arange(features.shape[2]) < features_len[:, None]
    return features.masked_fill(~live[:, None], 0.0).transpose(1, 2), live


def load_weights(module: nn.Module, names: Mapping[str, str], read: Callable[[str], torch.Tensor]) -> None:
    """Give a module on the meta device its parameters, all of them; `names` are NeMo's by the module's."""
    state = {
        name: torch.zeros((), dtype=torch.int64) if name.endswith("num_batches_tracked") else read(nemo).float()
        for name, nemo in names.items()
    }
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(requires_grad=False)
