"""The network of Cnn8Rnn (Xu et al. 2023, arXiv:2304.06326) as modules that trace into graphs of open length.

Parameter names are the checkpoint's. Its batch normalisations are gone: those of the blocks are folded into the
convolutions, which therefore have a bias; that of the input is two buffers of the graph, in float32. T counts frames.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from runtime.families.cnn8rnn.settings import Cnn8RnnDims

# The first convolution, 0.3 % of the multiplications. Its weights in bfloat16 moved sed-pocket's scores by up to 0.067.
_FIRST = "conv_block1.conv1"
FLOAT32 = frozenset({f"{_FIRST}.weight", f"{_FIRST}.bias"})


class ConvBlock(nn.Module):
    """Two convolutions with ReLU, then the sum of average and maximum pooling over frames and mels."""

    def __init__(self, n_in: int, n_out: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(n_out, n_out, kernel_size=3, padding=1)
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [1, n_out, T // pool[0], n_mels // pool[1]] for `x` [1, n_in, T, n_mels] in the dtype of conv1."""
        x = F.relu(self.conv1(x)).to(self.conv2.weight.dtype)
        x = F.relu(self.conv2(x))
        return F.avg_pool2d(x, self.pool) + F.max_pool2d(x, self.pool)


class BiGru(nn.Module):
    """One GRU layer in both directions as plain operators, whose parameters are those of both, forward first.

    torch's operator is out: torch_npu runs it in float16 alone, by a kernel that is compiled on the box. Each direction
    has its own order here: the backward one counts from the last frame. Gates are torch.nn.GRU's: reset, update, new.
    """

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(6 * n_hidden, n_in))
        self.bias_ih = nn.Parameter(torch.empty(6 * n_hidden))
        self.weight_hh = nn.Parameter(torch.empty(2, n_hidden, 3 * n_hidden))  # as a product takes it
        self.bias_hh = nn.Parameter(torch.empty(2, 1, 3 * n_hidden))

    def gates(self, x: torch.Tensor) -> torch.Tensor:
        """Return what `x` [T, n_in] adds to the gates of both directions, [2, T, 3 n_hidden], in their own orders."""
        gates = F.linear(x, self.weight_ih, self.bias_ih)
        width = gates.shape[1] // 2
        return torch.stack([gates[:, :width], gates[:, width:].flip(0)])

    def states(self, gates: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states [2, T, n_hidden] after each step, and those after the last, [2, 1, n_hidden].

        Spelled plainly, by slices: ONNX has no lerp, and ATC not in every version a Split into parts of 1.

        Parameters
        ----------
        gates : torch.Tensor
            [2, T, 3 n_hidden].
        h : torch.Tensor
            [2, 1, n_hidden]: the states before the first step.

        """
        width = h.shape[2]
        both, last = gates[:, :, : 2 * width], gates[:, :, 2 * width :]
        states = []
        for step in range(gates.shape[1]):
            inner = torch.matmul(h, self.weight_hh) + self.bias_hh
            reset_update = torch.sigmoid(both[:, step : step + 1] + inner[:, :, : 2 * width])
            reset, update = reset_update[:, :, :width], reset_update[:, :, width:]
            new = torch.tanh(last[:, step : step + 1] + reset * inner[:, :, 2 * width :])
            h = new + update * (h - new)
            states.append(h)
        return torch.cat(states, dim=1), h


class Cnn8Rnn(nn.Module):
    """The parameters of the network, in `dtype` but for those of FLOAT32.

    export/families/cnn8rnn/graphs.py says what is computed with them.
    """

    def __init__(self, dims: Cnn8RnnDims, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.conv_block1 = ConvBlock(1, dims.n_channels_1, (2, 2))
        self.conv_block2 = ConvBlock(dims.n_channels_1, dims.n_channels_2, (2, 2))
        self.conv_block3 = ConvBlock(dims.n_channels_2, dims.n_channels_3, (1, 2))
        self.conv_block4 = ConvBlock(dims.n_channels_3, dims.n_channels_4, (1, 2))
        self.fc1 = nn.Linear(dims.n_channels_4, dims.n_fc)
        self.rnn = BiGru(dims.n_fc, dims.n_hidden)
        self.fc_audioset = nn.Linear(2 * dims.n_hidden, dims.n_classes)
        self.to(dtype)
        self.get_submodule(_FIRST).float()
