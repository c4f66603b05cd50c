"""Granite's language model (a dense decoder with grouped-query attention) as modules that trace.

Parameter names are those of the hub's checkpoints. One sequence of S tokens is computed at a time; d is the width, H
the heads of queries, G those of keys and values, dh a head's size. `rows` are tokens, [S, d]. Each head of keys serves
H / G heads of queries, which stand behind each other in one matrix: keys are neither repeated nor copied. Norms,
softmax, rotation by position and the residual stream are float32, which takes a third off bfloat16's error.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from runtime.families.granite_speech.settings import GraniteDims, GraniteScales

KeyValue = tuple[torch.Tensor, torch.Tensor]


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [S, d] in the weight's dtype."""
        x = rows.float()
        normed = x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + self.eps)
        return (self.weight.float() * normed).to(self.weight.dtype)


class GroupedAttention(nn.Module):
    """Projections of grouped-query attention; how queries meet keys is up to the caller."""

    def __init__(self, dims: GraniteDims, scales: GraniteScales) -> None:
        super().__init__()
        self.heads, self.groups, self.head_dim = dims.lm_heads, dims.lm_kv_heads, dims.head_dim
        self.scale = scales.attention_multiplier
        width = self.groups * self.head_dim
        self.q_proj = nn.Linear(dims.lm_dim, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(dims.lm_dim, width, bias=False)
        self.v_proj = nn.Linear(dims.lm_dim, width, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, dims.lm_dim, bias=False)

    def query(self, rows: torch.Tensor, rotation: KeyValue) -> torch.Tensor:
        """Return scaled queries [G, H / G * S, dh] of `rows` [S, d], the S of a head in a row; see `rotate`."""
        heads = self.q_proj(rows).view(-1, self.heads, self.head_dim).transpose(0, 1)
        return _packed(rotate(heads, rotation) * self.scale).view(self.groups, -1, self.head_dim)

    def key_value(self, rows: torch.Tensor, rotation: KeyValue) -> KeyValue:
        """Return keys and values, each [G, S, dh], of `rows` [S, d]."""
        shape = (-1, self.groups, self.head_dim)
        key, value = self.k_proj(rows).view(shape), self.v_proj(rows).view(shape)
        return rotate(key.transpose(0, 1), rotation), value.transpose(0, 1)

    def merge(self, attended: torch.Tensor) -> torch.Tensor:
        """Return the output [S, d] for attended values [G, H / G * S, dh]."""
        heads = _packed(attended.view(self.heads, -1, self.head_dim).transpose(0, 1))
        result: torch.Tensor = self.o_proj(heads.view(-1, self.heads * self.head_dim))
        return result


class _GatedLinears(nn.Module):
    def __init__(self, dims: GraniteDims) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dims.lm_dim, dims.lm_ffn, bias=False)
        self.up_proj = nn.Linear(dims.lm_dim, dims.lm_ffn, bias=False)
        self.down_proj = nn.Linear(dims.lm_ffn, dims.lm_dim, bias=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [S, d]."""
        result: torch.Tensor = self.down_proj(F.silu(self.gate_proj(rows)) * self.up_proj(rows))
        return result


class DecoderLayer(nn.Module):
    """Pre-norm layer whose branches are scaled before they are added."""

    def __init__(self, dims: GraniteDims, scales: GraniteScales) -> None:
        super().__init__()
        self.residual = scales.residual_multiplier
        self.input_layernorm = RMSNorm(dims.lm_dim, scales.rms_norm_eps)
        self.self_attn = GroupedAttention(dims, scales)
        self.post_attention_layernorm = RMSNorm(dims.lm_dim, scales.rms_norm_eps)
        self.mlp = _GatedLinears(dims)

    def after_attention(self, rows: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Return the layer's output f32 [S, d] for its input `rows` f32 [S, d] and attended values, see `merge`."""
        x = rows + self.self_attn.merge(attended).float() * self.residual
        result: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x)).float() * self.residual
        return result


class Decoder(nn.Module):
    """Embeddings, layers, norm."""

    def __init__(self, dims: GraniteDims, scales: GraniteScales) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(dims.n_vocab, dims.lm_dim)
        self.layers = nn.ModuleList(DecoderLayer(dims, scales) for _ in range(dims.lm_layers))
        self.norm = RMSNorm(dims.lm_dim, scales.rms_norm_eps)


class LanguageModel(nn.Module):
    """The decoder and its head, which is the embedding where the checkpoint ties them."""

    def __init__(self, dims: GraniteDims, scales: GraniteScales) -> None:
        super().__init__()
        self.scaling = scales.logits_scaling
        self.model = Decoder(dims, scales)
        self.lm_head = None if dims.tied else nn.Linear(dims.lm_dim, dims.n_vocab, bias=False)

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Return logits [n, V] f32 for hidden states [n, d] behind the last layer."""
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(self.model.norm(rows), head.weight).float() / self.scaling


def rope_rotation(positions: torch.Tensor, frequencies: torch.Tensor) -> KeyValue:
    """Return cosines and signed sines, each f32 [S, dh], of RoPE (arXiv:2104.09864) in the form of transformers.

    Parameters
    ----------
    positions : torch.Tensor
        f32 [S].
    frequencies : torch.Tensor
        f32 [dh / 2], see rope_frequencies.

    """
    angles = positions.unsqueeze(1) * frequencies
    cosines, sines = torch.cos(angles), torch.sin(angles)
    return torch.cat([cosines, cosines], dim=1), torch.cat([-sines, sines], dim=1)


def rotate(heads: torch.Tensor, rotation: KeyValue) -> torch.Tensor:
    """Return `heads` [n, S, dh], each pair of elements i, i + dh / 2 turned by its position's angle."""
    cosines, sines = rotation
    x = heads.float()
    low, high = x.chunk(2, dim=-1)
    return (x * cosines + torch.cat([high, low], dim=-1) * sines).to(heads.dtype)


def _packed(x: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy; `reshape` would ask whether it needs one, which bakes a length of 1 or of more."""
    return x.clone(memory_format=torch.contiguous_format)


def rope_frequencies(dims: GraniteDims, scales: GraniteScales) -> torch.Tensor:
    """Return the frequencies [dh / 2] f32 in radians a position, rounded as those of transformers."""
    even = torch.arange(0, dims.head_dim, 2, dtype=torch.float32, device="cpu")
    return 1.0 / (scales.rope_theta ** (even / dims.head_dim))
