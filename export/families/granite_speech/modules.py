"""Granite Speech's conformer encoder and Q-Former projector as modules that trace, and the network as a whole.

Parameter names are those of the hub's checkpoints, with two differences: the batch normalisation is folded into the
depthwise convolution, which therefore has a bias; and pointwise convolutions are linears, whose weight has no last axis
of 1. A recording has T frames, of which a mask tells the padding; d is a width, H a number of heads, dh a head's size.
`rows` are frames or tokens, [n, d]. Norms and softmax are computed in float32.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from export.families.granite_speech.language_model import LanguageModel
from runtime.families.granite_speech.settings import GraniteDims, GraniteScales

# Added to the scores of frames that are none. Never -inf: some SoCs saturate it.
MASKED = -1e4


class ConformerFeedForward(nn.Module):
    """Layer norm and two linears with SiLU between them."""

    def __init__(self, dims: GraniteDims) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(dims.enc_dim)
        self.up_proj = nn.Linear(dims.enc_dim, dims.enc_ffn)
        self.down_proj = nn.Linear(dims.enc_ffn, dims.enc_dim)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [T, d] for `rows` [T, d]."""
        result: torch.Tensor = self.down_proj(F.silu(self.up_proj(self.pre_norm(rows))))
        return result


class BlockAttention(nn.Module):
    """Self-attention within blocks of frames, with Shaw's relative positions (arXiv:1803.02155) on the keys."""

    def __init__(self, dims: GraniteDims) -> None:
        super().__init__()
        width = dims.enc_heads * dims.enc_head_dim
        self.heads, self.head_dim, self.context = dims.enc_heads, dims.enc_head_dim, dims.enc_context
        self.pre_norm = nn.LayerNorm(dims.enc_dim)
        self.to_q = nn.Linear(dims.enc_dim, width, bias=False)
        self.to_kv = nn.Linear(dims.enc_dim, 2 * width, bias=False)
        self.to_out = nn.Linear(width, dims.enc_dim)
        self.rel_pos_emb = nn.Embedding(2 * dims.enc_max_pos + 1, dims.enc_head_dim)

    def forward(self, rows: torch.Tensor, distances: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return [T, d].

        Parameters
        ----------
        rows : torch.Tensor
            [T, d], T a multiple of the block's length C.
        distances : torch.Tensor
            i64 [2 C + 1]: the rows of the distances C, C - 1, ... -C among the embeddings.
        mask : torch.Tensor
            f32 [T / C, 1, 1, C]: 0 for frames that count, else MASKED.

        """
        x = self.pre_norm(rows)
        heads = (-1, self.context, self.heads, self.head_dim)
        keys, values = self.to_kv(x).chunk(2, dim=1)
        query = (self.to_q(x) * self.head_dim**-0.5).view(heads).transpose(1, 2)
        key, value = keys.view(heads).permute(0, 2, 3, 1), values.view(heads).transpose(1, 2)
        by_distance = torch.matmul(query, self.rel_pos_emb(distances).transpose(0, 1))
        scores = torch.matmul(query, key) + self._by_key(by_distance)
        attended = torch.matmul(softmax(scores.float() + mask, value.dtype), value)
        result: torch.Tensor = self.to_out(attended.transpose(1, 2).flatten(2).flatten(0, 1))
        return result

    def _by_key(self, by_distance: torch.Tensor) -> torch.Tensor:
        """Return scores [n, H, C, C] by query i and key j for those by distance [n, H, C, 2 C + 1].

        Column C - (i - j) holds the distance i - j. Read in lines of C, row i of 2 C + 1 columns has it at line
        2 i + 1, column j: every second line is the result. To gather [C, C, dh] of embeddings instead, and multiply
        each query with those of its row, took 22 instead of 29 ms a layer for 60 s of audio (ONNX Runtime, one thread,
        full size), less than one per cent of the encoder, for 330 MB of constants.
        """
        lines = by_distance.view(-1, self.heads, 2 * self.context + 1, self.context)
        return lines[:, :, 1 : 2 * self.context : 2]


class _DepthwiseConvolution(nn.Module):
    """A convolution over time for each channel; a module of its own as in the checkpoint."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)


class ConformerConvolution(nn.Module):
    """Layer norm, gated pointwise linear, depthwise convolution over all frames, SiLU, pointwise linear."""

    def __init__(self, dims: GraniteDims) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dims.enc_dim)
        self.up_conv = nn.Linear(dims.enc_dim, 2 * dims.enc_conv_dim)
        self.depth_conv = _DepthwiseConvolution(dims.enc_conv_dim, dims.enc_conv_kernel)
        self.down_conv = nn.Linear(dims.enc_conv_dim, dims.enc_dim)

    def forward(self, rows: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
        """Return [T, d]; `live` [T, 1] is 1 for frames that count, else 0."""
        x = F.glu(self.up_conv(self.norm(rows)), dim=1) * live
        x = self.depth_conv.conv(x.transpose(0, 1).unsqueeze(0))
        result: torch.Tensor = self.down_conv(F.silu(x).squeeze(0).transpose(0, 1))
        return result


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each with a residual; a layer norm."""

    def __init__(self, dims: GraniteDims) -> None:
        super().__init__()
        self.ff1 = ConformerFeedForward(dims)
        self.attn = BlockAttention(dims)
        self.conv = ConformerConvolution(dims)
        self.ff2 = ConformerFeedForward(dims)
        self.post_norm = nn.LayerNorm(dims.enc_dim)

    def forward(
        self, rows: torch.Tensor, distances: torch.Tensor, mask: torch.Tensor, live: torch.Tensor
    ) -> torch.Tensor:
        """Return [T, d]; the arguments are those of BlockAttention and ConformerConvolution."""
        x = rows + 0.5 * self.ff1(rows)
        x = x + self.attn(x, distances, mask)
        x = x + self.conv(x, live)
        x = x + 0.5 * self.ff2(x)
        result: torch.Tensor = self.post_norm(x)
        return result


class Encoder(nn.Module):
    """Conformer (Gulati et al. 2020, arXiv:2005.08100) with block attention and a self-conditioned CTC head."""

    def __init__(self, dims: GraniteDims) -> None:
        super().__init__()
        self.context = dims.enc_context
        self.input_linear = nn.Linear(2 * dims.n_mels, dims.enc_dim)
        self.layers = nn.ModuleList(ConformerLayer(dims) for _ in range(dims.enc_layers))
        self.out = nn.Linear(dims.enc_dim, dims.n_ctc)
        self.out_mid = nn.Linear(dims.n_ctc, dims.enc_dim)

    def forward(self, rows: torch.Tensor, dead: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        """Return hidden states [T, d], not yet masked.

        Parameters
        ----------
        rows : torch.Tensor
            Features [T, 2 n_mels] in the weights' dtype.
        dead : torch.Tensor
            bool [T]: the frames that are padding.
        distances : torch.Tensor
            See BlockAttention.

        """
        mask = dead.view(-1, 1, 1, self.context).float() * MASKED
        live = (~dead).to(rows.dtype).unsqueeze(1)
        x: torch.Tensor = self.input_linear(rows)
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, distances, mask, live)
            if number == len(self.layers) // 2:
                x = x + self.out_mid(softmax(self.out(x).float(), x.dtype))
        return x


class _QFormerHeads(nn.Module):
    def __init__(self, width: int, source: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source, width)
        self.value = nn.Linear(source, width)


class _QFormerOutput(nn.Module):
    def __init__(self, inner: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, rows: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Return the norm [n, Q, d] of `before` [n or 1, Q, d] and a linear of `rows` [n Q, inner]."""
        x = self.dense(rows)
        result: torch.Tensor = self.LayerNorm(x.view(-1, *before.shape[1:]) + before)
        return result


class QFormerAttention(nn.Module):
    """BERT's attention: heads, a linear, a residual, a layer norm."""

    def __init__(self, dims: GraniteDims, scales: GraniteScales, source: int) -> None:
        super().__init__()
        self.heads, self.head_dim = dims.proj_heads, dims.proj_dim // dims.proj_heads
        self.attention = _QFormerHeads(dims.proj_dim, source)
        self.output = _QFormerOutput(dims.proj_dim, dims.proj_dim, scales.projector_norm_eps)

    def forward(self, x: torch.Tensor, source: torch.Tensor, n_source: int) -> torch.Tensor:
        """Return [n, Q, d] for queries `x` [n or 1, Q, d] that attend to rows `source` [n S, d]; S is `n_source`."""
        query = self._split(self.attention.query(x.flatten(0, 1)), x.shape[1]) * self.head_dim**-0.5
        key = self._split(self.attention.key(source), n_source)
        value = self._split(self.attention.value(source), n_source)
        weights = softmax(torch.matmul(query, key.transpose(2, 3)).float(), value.dtype)
        heads = torch.matmul(weights, value).transpose(1, 2).flatten(2).flatten(0, 1)
        result: torch.Tensor = self.output(heads, x)
        return result

    def _split(self, rows: torch.Tensor, length: int) -> torch.Tensor:
        return rows.view(-1, length, self.heads, self.head_dim).transpose(1, 2)


class _QFormerIntermediate(nn.Module):
    def __init__(self, dims: GraniteDims) -> None:
        super().__init__()
        self.dense = nn.Linear(dims.proj_dim, dims.proj_ffn)


class QFormerLayer(nn.Module):
    """Self-attention of the queries, attention to the encoder's frames, feed-forward."""

    def __init__(self, dims: GraniteDims, scales: GraniteScales) -> None:
        super().__init__()
        self.attention = QFormerAttention(dims, scales, dims.proj_dim)
        self.crossattention = QFormerAttention(dims, scales, dims.enc_dim)
        self.intermediate_query = _QFormerIntermediate(dims)
        self.output_query = _QFormerOutput(dims.proj_ffn, dims.proj_dim, scales.projector_norm_eps)

    def forward(self, x: torch.Tensor, frames: torch.Tensor, window: int) -> torch.Tensor:
        """Return [n, Q, d] for queries `x` [n or 1, Q, d] and `frames` [n window, d]."""
        x = self.attention(x, x.flatten(0, 1), x.shape[1])
        x = self.crossattention(x, frames, window)
        result: torch.Tensor = self.output_query(F.gelu(self.intermediate_query.dense(x.flatten(0, 1))), x)
        return result


class _QFormerEncoder(nn.Module):
    def __init__(self, dims: GraniteDims, scales: GraniteScales) -> None:
        super().__init__()
        self.layer = nn.ModuleList(QFormerLayer(dims, scales) for _ in range(dims.proj_layers))


class QFormer(nn.Module):
    """BLIP-2's Q-Former (Li et al. 2023, arXiv:2301.12597) without its text branch."""

    def __init__(self, dims: GraniteDims, scales: GraniteScales) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(dims.proj_dim, eps=scales.projector_norm_eps)
        self.encoder = _QFormerEncoder(dims, scales)


class Projector(nn.Module):
    """Learned queries that read a window of frames each time, and a linear to the language model's width."""

    def __init__(self, dims: GraniteDims, scales: GraniteScales) -> None:
        super().__init__()
        self.window = dims.window
        self.query = nn.Parameter(torch.empty(1, dims.queries, dims.proj_dim))
        self.qformer = QFormer(dims, scales)
        self.linear = nn.Linear(dims.proj_dim, dims.lm_dim)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return embeddings [T / window queries, lm_dim] for `frames` [T, enc_dim], T a multiple of the window."""
        x = self.qformer.layernorm(self.query)
        for layer in self.qformer.encoder.layer:
            x = layer(x, frames, self.window)
        result: torch.Tensor = self.linear(x.flatten(0, 1))
        return result


class Granite(nn.Module):
    """The parameters of the network; export/families/granite_speech/graphs.py says what is computed with them."""

    def __init__(self, dims: GraniteDims, scales: GraniteScales) -> None:
        super().__init__()
        self.encoder = Encoder(dims)
        self.projector = Projector(dims, scales)
        self.language_model = LanguageModel(dims, scales)


def parameter_shapes(dims: GraniteDims) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter of the graphs."""
    with torch.device("meta"):
        model = Granite(dims, GraniteScales())
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def softmax(scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the weights over the last axis of f32 `scores`, cast to `dtype`."""
    return torch.softmax(scores, dim=-1).to(dtype)


def relative_positions(dims: GraniteDims) -> torch.Tensor:
    """Return where the distances C, C - 1, ... -C are among the embeddings, i64 [2 C + 1], C the block's length."""
    context, middle = dims.enc_context, dims.enc_max_pos
    return torch.arange(middle + context, middle - context - 1, -1, device="cpu")
