"""FastConformer (Rekesh et al. 2023, arXiv:2305.05084) as modules that trace.

Parameter names are NeMo's, with two differences: the batch normalisation is folded into the depthwise convolution,
which therefore has a bias; and pointwise convolutions are linears, whose weight has no last axis of 1. B recordings
have T frames each behind the subsampling, d is the encoder's width. `rows` are frames of all recordings, [B T, d].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from runtime.fastconformer.settings import FastConformerDims

# Added to the scores of frames that are none, within fp16's range. Never -inf: some SoCs saturate it.
MASKED = -1e4
# The longest wavelength of the positions is 2 pi times this.
_WAVELENGTHS = 10000.0


class Subsampling(nn.Module):
    """Convolutions of stride 2 over frames and mels: a full one, then depthwise ones each with a pointwise one."""

    def __init__(self, dims: FastConformerDims) -> None:
        super().__init__()
        channels = dims.subsampling_channels
        layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.ReLU()]
        n_mels = (dims.n_mels + 1) // 2
        for _ in range(int(math.log2(dims.subsampling_factor)) - 1):
            layers += [
                nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels),
                nn.Conv2d(channels, channels, 1),
                nn.ReLU(),
            ]
            n_mels = (n_mels + 1) // 2
        self.conv = nn.ModuleList(layers)
        self.out = nn.Linear(channels * n_mels, dims.d_model)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rows [B T, d], bool [B, T] of which are frames that count, and their numbers i64 [B].

        Parameters
        ----------
        features : torch.Tensor
            [B, n_frames, n_mels].
        lengths : torch.Tensor
            i64 [B]: the frames that count; the others may hold anything.

        """
        x = features.masked_fill(~live_frames(features, lengths).unsqueeze(2), 0.0).unsqueeze(1)
        for layer in self.conv:
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                # Biases made something of the frames that do not count, which this convolution would mix in.
                x = x * live_frames(x[:, 0], lengths).to(x.dtype).unsqueeze(1).unsqueeze(3)
            x = layer(x)
            if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                lengths = torch.div(lengths + 1, 2, rounding_mode="floor")
        rows = x.transpose(1, 2).flatten(2).flatten(0, 1)
        return self.out(rows), live_frames(x[:, 0], lengths), lengths


class FeedForward(nn.Module):
    """Two linears with SiLU between them."""

    def __init__(self, dims: FastConformerDims) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dims.d_model, dims.d_ff, bias=bool(dims.use_bias))
        self.linear2 = nn.Linear(dims.d_ff, dims.d_model, bias=bool(dims.use_bias))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [B T, d]."""
        result: torch.Tensor = self.linear2(F.silu(self.linear1(rows)))
        return result


class Convolution(nn.Module):
    """Gated pointwise linear, depthwise convolution over time, SiLU, pointwise linear."""

    def __init__(self, dims: FastConformerDims) -> None:
        super().__init__()
        d, kernel = dims.d_model, dims.conv_kernel
        self.pointwise_conv1 = nn.Linear(d, 2 * d, bias=bool(dims.use_bias))
        self.depthwise_conv = nn.Conv1d(d, d, kernel, padding=(kernel - 1) // 2, groups=d)
        self.pointwise_conv2 = nn.Linear(d, d, bias=bool(dims.use_bias))

    def forward(self, rows: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
        """Return [B T, d]; `live` [B, T, 1] is 1 for frames that count, else 0."""
        x = F.glu(self.pointwise_conv1(rows), dim=1)
        x = (x.view(*live.shape[:2], x.shape[1]) * live).transpose(1, 2)
        x = F.silu(self.depthwise_conv(x)).transpose(1, 2).flatten(0, 1)
        result: torch.Tensor = self.pointwise_conv2(x)
        return result


class RelativeAttention(nn.Module):
    """Self-attention with relative positions (Dai et al. 2019, arXiv:1901.02860, as NeMo's rel_pos)."""

    def __init__(self, dims: FastConformerDims) -> None:
        super().__init__()
        d, bias = dims.d_model, bool(dims.use_bias)
        self.n_heads, self.head_dim = dims.n_heads, d // dims.n_heads
        self.linear_q = nn.Linear(d, d, bias=bias)
        self.linear_k = nn.Linear(d, d, bias=bias)
        self.linear_v = nn.Linear(d, d, bias=bias)
        self.linear_out = nn.Linear(d, d, bias=bias)
        self.linear_pos = nn.Linear(d, d, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(dims.n_heads, self.head_dim))
        self.pos_bias_v = nn.Parameter(torch.empty(dims.n_heads, self.head_dim))

    def forward(self, rows: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return [B T, d].

        Parameters
        ----------
        rows : torch.Tensor
            [B T, d].
        positions : torch.Tensor
            [2 T + 1, d]: the embeddings of the distances T, T - 1, ... -T.
        mask : torch.Tensor
            [B, 1, 1, T]: 0 for frames that count, else MASKED.

        """
        batch, _, _, length = mask.shape
        heads = (batch, length, self.n_heads, self.head_dim)
        query = self.linear_q(rows).view(heads)
        key = self.linear_k(rows).view(heads).permute(0, 2, 3, 1)
        value = self.linear_v(rows).view(heads).transpose(1, 2)
        position = self.linear_pos(positions).view(-1, *heads[2:]).permute(1, 2, 0)  # [heads, dk, 2 T + 1]
        scale = self.head_dim**-0.5
        by_content = torch.matmul(((query + self.pos_bias_u) * scale).transpose(1, 2), key)
        by_distance = torch.matmul(((query + self.pos_bias_v) * scale).transpose(1, 2), position)
        scores = by_content + relative_shift(by_distance) + mask
        attended = torch.matmul(torch.softmax(scores, dim=-1), value)
        result: torch.Tensor = self.linear_out(attended.transpose(1, 2).flatten(2).flatten(0, 1))
        return result


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each with a residual; a normalisation."""

    def __init__(self, dims: FastConformerDims) -> None:
        super().__init__()
        d = dims.d_model
        self.norm_feed_forward1 = nn.LayerNorm(d)
        self.feed_forward1 = FeedForward(dims)
        self.norm_self_att = nn.LayerNorm(d)
        self.self_attn = RelativeAttention(dims)
        self.norm_conv = nn.LayerNorm(d)
        self.conv = Convolution(dims)
        self.norm_feed_forward2 = nn.LayerNorm(d)
        self.feed_forward2 = FeedForward(dims)
        self.norm_out = nn.LayerNorm(d)

    def forward(
        self, rows: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, live: torch.Tensor
    ) -> torch.Tensor:
        """Return [B T, d]; the arguments are those of RelativeAttention and Convolution."""
        x = rows + 0.5 * self.feed_forward1(self.norm_feed_forward1(rows))
        x = x + self.self_attn(self.norm_self_att(x), positions, mask)
        x = x + self.conv(self.norm_conv(x), live)
        x = x + 0.5 * self.feed_forward2(self.norm_feed_forward2(x))
        result: torch.Tensor = self.norm_out(x)
        return result


class Encoder(nn.Module):
    """FastConformer of any length."""

    def __init__(self, dims: FastConformerDims) -> None:
        super().__init__()
        self.pre_encode = Subsampling(dims)
        self.layers = nn.ModuleList(ConformerLayer(dims) for _ in range(dims.n_layers))


def parameter_shapes(network: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter of a network, which is made on the meta device."""
    with torch.device("meta"):
        model = network()
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def live_frames(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return bool [B, T]: which of the frames of `x` [B, T, n] are within `lengths` i64 [B]."""
    return torch.cumsum(torch.ones_like(x[:1, :, 0], dtype=torch.int64), dim=1) <= lengths.unsqueeze(1)


def relative_positions(live: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Return the embeddings [2 T + 1, d] f32 of the distances T, T - 1, ... -T.

    They are computed here, for any length, with the rounding of NeMo's table of them.

    Parameters
    ----------
    live : torch.Tensor
        [B, T], of which only the length counts.
    frequencies : torch.Tensor
        [d / 2] f32, see position_frequencies.

    """
    counted = torch.cumsum(torch.ones_like(live[0], dtype=torch.float32), dim=0)  # 1, 2, ... T
    last = counted[-1:]
    distances = torch.cat([last + 1 - counted, last - last, -counted])
    angles = distances.unsqueeze(1) * frequencies
    return torch.stack([torch.sin(angles), torch.cos(angles)], dim=2).flatten(1)


def position_frequencies(d_model: int) -> torch.Tensor:
    """Return the frequencies [d_model / 2] f32 of the sinusoids in radians a frame, rounded as NeMo's."""
    even = torch.arange(0, d_model, 2, dtype=torch.float32, device="cpu")
    return torch.exp(even * -(math.log(_WAVELENGTHS) / d_model))


def relative_shift(by_distance: torch.Tensor) -> torch.Tensor:
    """Return scores [B, heads, T, T] by query i and key j for those by distance [B, heads, T, 2 T + 1].

    Column T - (i - j) holds the distance i - j of frames i and j. Read in lines of T, row i of 2 T + 1 columns has it
    at line 2 i + 1, column j: every second line is the result. No padding and no copy but that of these lines.
    """
    length = by_distance.shape[2]
    lines = by_distance.view(*by_distance.shape[:2], 2 * length + 1, length)
    return lines[:, :, 1 : 2 * length : 2]
