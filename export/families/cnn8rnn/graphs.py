"""Cnn8Rnn's graphs: the log-mel `frontend`, always float32, and `gates`, `recurrence`, `head` from frames to logits.

B = 1; the length is open, but for the recurrence: STEPS steps, which the host calls until all are done, with the states
of the call before (runtime/families/cnn8rnn/network.py). Gates and states of both directions lie as [1, 2, T, width]
and in their own orders, the backward one's last frame first: so a last call's padding comes last in both, and needs no
mask. A recording has n_samples // hop_length + 1 frames, and one score for 4 of them. Sigmoid, pooling over the clip
and repetition of scores are the host's, in float32: squares of probabilities underflow in fp16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from export.families.cnn8rnn.modules import Cnn8Rnn
from export.graphs import DTYPE_NAMES, GraphDefinition
from runtime.families.cnn8rnn.settings import (
    FRONTEND,
    GATES,
    HEAD,
    RECURRENCE,
    Cnn8RnnDims,
    Cnn8RnnFrontend,
    Cnn8RnnSettings,
)
from runtime.manifest import TensorSpec

# Steps a call of the recurrence: 2 s. 500 operators, which a capture replays as one.
STEPS = 50
_POWER_FLOOR = 1e-10


@dataclass(frozen=True)
class Constants:
    """What the graphs hold in float32: `window` [n_fft], `filters` [n_fft // 2 + 1, n_mels], `scale`, `shift` [n_mels].

    All are the checkpoint's own; a normalised frame is `logmel * scale + shift`.
    """

    window: torch.Tensor
    filters: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor


class LogMel(nn.Module):
    """Log-mel spectrogram in dB; the Fourier transform is a convolution, as ATC has no STFT and ONNX's is inexact.

    The kernel holds windowed cosines, then sines, computed in float64: one output channel per frequency and part.

    Parameters
    ----------
    window : torch.Tensor
        [n_fft], the checkpoint's own.
    filters : torch.Tensor
        [n_fft // 2 + 1, n_mels], the checkpoint's own mel filters.
    hop_length : int
        Samples from one frame to the next.

    """

    def __init__(self, window: torch.Tensor, filters: torch.Tensor, hop_length: int) -> None:
        super().__init__()
        n_fft = len(window)
        self.hop_length = hop_length
        self.padding = n_fft // 2
        # Frequencies that no filter takes (those above f_max) are left out.
        freq = filters.any(dim=1).nonzero()  # [n_freq, 1]
        sample = torch.arange(n_fft, dtype=torch.float64, device="cpu")
        # The remainder is exact, which the cosine of a large angle would not be.
        angle = torch.remainder(freq * sample, n_fft) * (2 * math.pi / n_fft)
        kernel = torch.cat([torch.cos(angle), torch.sin(angle)]) * window.double()
        taken = filters[freq[:, 0]].T
        self.kernel: torch.Tensor
        self.filters: torch.Tensor
        self.register_buffer("kernel", kernel.float()[:, None], persistent=False)  # [2 n_freq, 1, n_fft]
        self.register_buffer("filters", torch.cat([taken, taken], dim=1), persistent=False)  # [n_mels, 2 n_freq]

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Return logmel [1, n_mels, n_frames] f32 in dB for `audio` [1, n_samples] f32."""
        padded = F.pad(audio.unsqueeze(1), (self.padding, self.padding), mode="reflect")
        spectrum = F.conv1d(padded, self.kernel, stride=self.hop_length)
        # The filters stand there twice: they add the power of the cosines and that of the sines.
        power = torch.matmul(self.filters, spectrum * spectrum)
        return torch.log(torch.clamp(power, min=_POWER_FLOOR)) * (10 / math.log(10))


class Gates(nn.Module):
    """Log-mel frames to the GRU's gates. The frames are normalised and first convolved in float32 in any variant.

    Parameters
    ----------
    model : Cnn8Rnn
        The network.
    scale, shift : torch.Tensor
        [n_mels] f32: the batch normalisation of the input.

    """

    def __init__(self, model: Cnn8Rnn, scale: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.conv_block1 = model.conv_block1
        self.conv_block2 = model.conv_block2
        self.conv_block3 = model.conv_block3
        self.conv_block4 = model.conv_block4
        self.fc1 = model.fc1
        self.rnn = model.rnn
        self.scale: torch.Tensor
        self.shift: torch.Tensor
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, logmel: torch.Tensor) -> torch.Tensor:
        """Return gates [1, 2, n_scores, 3 n_hidden] for `logmel` [1, n_mels, n_frames] f32, in dB."""
        frames = logmel.transpose(1, 2) * self.scale + self.shift
        x = self.conv_block1(frames.unsqueeze(1))  # [1, C, n_frames // 2, n_mels // 2]
        x = self.conv_block4(self.conv_block3(self.conv_block2(x)))  # [1, C, n_scores, n_mels // 16]
        # Without the batch: a product of two matrices has no shape to restore afterwards.
        scores = x.mean(dim=3).squeeze(0).transpose(0, 1)  # [n_scores, C]
        return self.rnn.gates(F.relu(self.fc1(scores))).unsqueeze(0)


class Recurrence(nn.Module):
    """STEPS steps of the GRU in both directions."""

    def __init__(self, model: Cnn8Rnn) -> None:
        super().__init__()
        self.rnn = model.rnn

    def forward(self, gates: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return states [1, 2, STEPS, n_hidden] and the last of them, new_h [2, 1, n_hidden].

        Parameters
        ----------
        gates : torch.Tensor
            [1, 2, STEPS, 3 n_hidden].
        h : torch.Tensor
            [2, 1, n_hidden]: the states before.

        """
        states, new_h = self.rnn.states(gates.squeeze(0), h)
        return states.unsqueeze(0), new_h


class Head(nn.Module):
    """The GRU's states to logits."""

    def __init__(self, model: Cnn8Rnn) -> None:
        super().__init__()
        self.fc_audioset = model.fc_audioset

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits [1, n_scores, n_classes] f32 for `states` [1, 2, n_scores, n_hidden]."""
        joined = torch.cat([states[0, 0], states[0, 1].flip(0)], dim=1)
        logits: torch.Tensor = self.fc_audioset(joined).float().unsqueeze(0)
        return logits


def cnn8rnn_graphs(
    model: Cnn8Rnn, constants: Constants, dims: Cnn8RnnDims, frontend: Cnn8RnnFrontend, dtype: torch.dtype
) -> dict[str, GraphDefinition]:
    """Return the graphs `frontend`, `gates`, `recurrence` and `head`.

    Parameters
    ----------
    model : Cnn8Rnn
        With its parameters, or on the meta device.
    constants : Constants
        What the graphs hold in float32.
    dims, frontend : Cnn8RnnDims, Cnn8RnnFrontend
        The network and its front-end.
    dtype : torch.dtype
        Of weights and activations. Audio, log-mel and logits are float32.

    """
    model = model.eval().requires_grad_(requires_grad=False)
    audio = TensorSpec(name="audio", dtype="float32", shape=(1, "n_samples"))
    logmel = TensorSpec(name="logmel", dtype="float32", shape=(1, dims.n_mels, "n_frames"))
    name, hidden = DTYPE_NAMES[dtype], dims.n_hidden

    def both(tensor: str, steps: int | str, width: int) -> TensorSpec:
        return TensorSpec(name=tensor, dtype=name, shape=(1, 2, steps, width))

    h = TensorSpec(name="h", dtype=name, shape=(2, 1, hidden))
    logits = TensorSpec(name="logits", dtype="float32", shape=(1, "n_scores", dims.n_classes))
    n_frames = Cnn8RnnSettings().frames_per_score
    n_samples = (n_frames - 1) * frontend.hop_length
    mel = LogMel(constants.window, constants.filters, frontend.hop_length)
    gates = Gates(model, constants.scale, constants.shift)
    graphs = (
        GraphDefinition(FRONTEND, mel.eval(), (audio,), (logmel,), {"n_samples": n_samples}),
        GraphDefinition(
            GATES, gates.eval(), (logmel,), (both("gates", "n_scores", 3 * hidden),), {"n_frames": n_frames}
        ),
        GraphDefinition(
            RECURRENCE,
            Recurrence(model).eval(),
            (both("gates", STEPS, 3 * hidden), h),
            (both("states", STEPS, hidden), h.model_copy(update={"name": "new_h"})),
        ),
        GraphDefinition(
            HEAD, Head(model).eval(), (both("states", "n_scores", hidden),), (logits,), {"n_scores": 1}, {"n_scores": 7}
        ),
    )
    return {graph.name: graph for graph in graphs}
