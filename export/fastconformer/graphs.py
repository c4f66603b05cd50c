"""FastConformer's graph `frontend`, and what the graph `encoder` begins with.

B (recordings) and all lengths are open, d is the encoder's width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from export.fastconformer.modules import MASKED, Encoder, live_frames, position_frequencies, relative_positions
from export.graphs import GraphDefinition
from runtime.fastconformer.settings import ENCODER, FRONTEND, FastConformerDims, FastConformerFrontend
from runtime.manifest import TensorSpec

# NeMo's log_zero_guard_value, and what it adds to the standard deviation.
_POWER_FLOOR, _STD_FLOOR = 2.0**-24, 1e-5


@dataclass(frozen=True)
class Constants:
    """The front-end's own: `window` [win_length], `filters` [n_mels, n_fft // 2 + 1], both f32."""

    window: torch.Tensor
    filters: torch.Tensor


class LogMel(nn.Module):
    """Normalised log-mel features of NeMo's AudioToMelSpectrogramPreprocessor.

    The Fourier transform is a convolution, as ATC has no STFT and ONNX's is inexact. The kernel holds windowed cosines,
    then sines, computed in float64: one output channel per frequency and part. The window is shorter than the transform
    and stands in its middle; where it is zero the kernel ends.
    """

    def __init__(self, constants: Constants, frontend: FastConformerFrontend) -> None:
        super().__init__()
        n_fft, window = frontend.n_fft, constants.window.double()
        self.hop_length = frontend.hop_length
        self.preemphasis = frontend.preemphasis
        before = (n_fft - frontend.win_length) // 2
        self.padding = (n_fft // 2 - before, frontend.win_length - (n_fft // 2 - before))
        # Frequencies that no filter takes are left out.
        freq = constants.filters.any(dim=0).nonzero()  # [n_freq, 1]
        sample = before + torch.arange(frontend.win_length, dtype=torch.float64, device="cpu")
        # The remainder is exact, which the cosine of a large angle would not be.
        angle = torch.remainder(freq * sample, n_fft) * (2 * math.pi / n_fft)
        kernel = torch.cat([torch.cos(angle), torch.sin(angle)]) * window
        # For log(power + floor) less log(floor), which normalisation removes: silence is zero, not rounding.
        taken = constants.filters[:, freq[:, 0]] / _POWER_FLOOR
        self.kernel: torch.Tensor
        self.filters: torch.Tensor
        self.register_buffer("kernel", kernel.float()[:, None], persistent=False)  # [2 n_freq, 1, win_length]
        self.register_buffer("filters", torch.cat([taken, taken], dim=1), persistent=False)  # [n_mels, 2 n_freq]

    def forward(self, audio: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [B, n_mels, n_samples // hop_length + 1] f32 and their number i64 [B].

        A recording of one frame has no variance: its features are zero, as all beyond a recording's end.

        Parameters
        ----------
        audio : torch.Tensor
            [B, n_samples] f32; samples beyond `length` may be anything.
        length : torch.Tensor
            i64 [B], in samples.

        """
        audio = audio.masked_fill(~live_frames(audio.unsqueeze(2), length), 0.0)
        emphasized = audio - self.preemphasis * F.pad(audio[:, :-1], (1, 0))
        emphasized = emphasized.masked_fill(~live_frames(audio.unsqueeze(2), length), 0.0)
        padded = F.pad(emphasized.unsqueeze(1), self.padding)
        spectrum = F.conv1d(padded, self.kernel, stride=self.hop_length)
        # The filters stand there twice: they add the power of the cosines and that of the sines.
        logmel = torch.log(torch.matmul(self.filters, spectrum * spectrum) + 1.0)
        n_frames = torch.div(length, self.hop_length, rounding_mode="floor")
        return self._normalized(logmel, n_frames), n_frames

    @staticmethod
    def _normalized(logmel: torch.Tensor, n_frames: torch.Tensor) -> torch.Tensor:
        """Return each mel with mean 0 and variance 1 over the frames that count, zero elsewhere."""
        dead = ~live_frames(logmel.transpose(1, 2), n_frames).unsqueeze(1)  # [B, 1, T]
        count = n_frames.unsqueeze(1).unsqueeze(2).float()
        mean = logmel.masked_fill(dead, 0.0).sum(dim=2, keepdim=True) / count.clamp(min=1.0)
        centred = (logmel - mean).masked_fill(dead, 0.0)
        variance = (centred * centred).sum(dim=2, keepdim=True) / (count - 1.0).clamp(min=1.0)
        return centred / (torch.sqrt(variance) + _STD_FLOOR)


class EncoderBody(nn.Module):
    """Base: features to the encoder's own frames."""

    def __init__(self, encoder: Encoder, dims: FastConformerDims) -> None:
        super().__init__()
        self.encoder = encoder
        self.scale = math.sqrt(dims.d_model) if dims.xscaling else 1.0
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", position_frequencies(dims.d_model), persistent=False)

    def encode(
        self, features: torch.Tensor, features_len: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rows [B T, d], bool [B, T] of which are frames that count, and their numbers i64 [B].

        Parameters
        ----------
        features : torch.Tensor
            [B, n_mels, n_frames] f32; those beyond `features_len` may be anything.
        features_len : torch.Tensor
            i64 [B].

        """
        dtype = self.encoder.pre_encode.out.weight.dtype
        rows, live, frames_len = self.encoder.pre_encode(features.transpose(1, 2).to(dtype), features_len)
        positions = relative_positions(live, self.frequencies).to(dtype)
        mask = (~live).to(dtype).unsqueeze(1).unsqueeze(2) * MASKED
        keep = live.to(dtype).unsqueeze(2)
        if self.scale != 1.0:
            rows = rows * self.scale
        for layer in self.encoder.layers:
            rows = layer(rows, positions, mask, keep)
        return rows, live, frames_len


def frontend_graph(constants: Constants, dims: FastConformerDims, frontend: FastConformerFrontend) -> GraphDefinition:
    """Return the graph `frontend`: audio and length to features and their number, all but the lengths float32."""
    audio = TensorSpec(name="audio", dtype="float32", shape=("batch", "n_samples"))
    inputs = (audio, _lengths("length"))
    least = {"batch": 1, "n_samples": frontend.hop_length}
    return GraphDefinition(FRONTEND, LogMel(constants, frontend).eval(), inputs, _features(dims), least)


def encoder_graph(body: EncoderBody, dims: FastConformerDims, output: TensorSpec) -> GraphDefinition:
    """Return the graph `encoder`: features and their number to `output` and the number of its frames."""
    return GraphDefinition(
        ENCODER,
        body.eval(),
        _features(dims),
        (output, _lengths("frames_len")),
        {"batch": 1, "n_frames": 1},
        {"n_frames": 3 * dims.subsampling_factor + 1},
    )


def _features(dims: FastConformerDims) -> tuple[TensorSpec, TensorSpec]:
    features = TensorSpec(name="features", dtype="float32", shape=("batch", dims.n_mels, "n_frames"))
    return features, _lengths("features_len")


def _lengths(name: str) -> TensorSpec:
    return TensorSpec(name=name, dtype="int64", shape=("batch",))
