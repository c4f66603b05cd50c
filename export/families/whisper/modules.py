"""Whisper's network (Radford et al. 2022, arXiv:2212.04356) as modules that trace into static graphs.

Parameter names are those of the checkpoints on the hub without the leading `model.`, so that a state dict loads
strictly. Nothing here creates a tensor in `forward`: constants are buffers, so that a trace holds no device.
B is the batch, T the number of tokens or frames, d the width, H the number of heads and dh = d / H.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from runtime.families.whisper.settings import WhisperDims

KeyValue = tuple[torch.Tensor, torch.Tensor]


class Attention(nn.Module):
    """Projections of multi-head attention; how queries meet keys is up to the caller."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def query(self, x: torch.Tensor) -> torch.Tensor:
        """Return the queries [B, H, T, dh] of `x` [B, T, d]."""
        return self._split(self.q_proj(x))

    def key_value(self, x: torch.Tensor) -> KeyValue:
        """Return keys and values, each [B, H, T, dh], of `x` [B, T, d]."""
        return self._split(self.k_proj(x)), self._split(self.v_proj(x))

    def merge(self, heads: torch.Tensor) -> torch.Tensor:
        """Return the output [B, T, d] for attended values [B, H, T, dh]."""
        merged: torch.Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return merged

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x, -1, (self.heads, self.head_dim)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer without a mask."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, T, d] for `x` [B, T, d]."""
        y = self.self_attn_layer_norm(x)
        heads = F.scaled_dot_product_attention(self.self_attn.query(y), *self.self_attn.key_value(y))
        x = x + self.self_attn.merge(heads)
        return _feed_forward(self, x)


class Encoder(nn.Module):
    """Two convolutions, the second halves the frames, then transformer layers."""

    def __init__(self, dims: WhisperDims) -> None:
        super().__init__()
        width = dims.n_audio_state
        self.conv1 = nn.Conv1d(dims.n_mels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(dims.n_audio_ctx, width)
        self.layers = nn.ModuleList(
            EncoderLayer(width, dims.n_audio_head, dims.n_audio_ffn) for _ in range(dims.n_audio_layer)
        )
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Return hidden states [B, n_audio_ctx, d] for `mel` [B, n_mels, 2 n_audio_ctx]."""
        x: torch.Tensor = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        x = x + self.embed_positions.weight
        for layer in self.layers:
            x = layer(x)
        hidden: torch.Tensor = self.layer_norm(x)
        return hidden


class DecoderLayer(nn.Module):
    """Pre-norm transformer layer with self-attention and cross-attention."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = Attention(width, heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def after_self_attention(self, x: torch.Tensor, heads: torch.Tensor, cross: KeyValue) -> torch.Tensor:
        """Return the layer's output [B, T, d].

        Parameters
        ----------
        x : torch.Tensor
            The layer's input [B, T, d].
        heads : torch.Tensor
            What its self-attention found [B, H, T, dh].
        cross : KeyValue
            Keys and values of the encoder's frames, each [B, H, n_audio_ctx, dh].

        """
        x, query = self.cross_query(x, heads)
        return self.after_cross_query(x, query, cross)

    def cross_query(self, x: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's state [B, T, d] behind its self-attention, and the cross-attention's [B, H, T, dh]."""
        x = x + self.self_attn.merge(heads)
        return x, self.encoder_attn.query(self.encoder_attn_layer_norm(x))

    def after_cross_query(self, x: torch.Tensor, query: torch.Tensor, cross: KeyValue) -> torch.Tensor:
        """Return the layer's output [B, T, d] for what `cross_query` returned."""
        x = x + self.encoder_attn.merge(F.scaled_dot_product_attention(query, *cross))
        return _feed_forward(self, x)


class Decoder(nn.Module):
    """Embeddings and transformer layers; the vocabulary projection is the token embedding."""

    def __init__(self, dims: WhisperDims) -> None:
        super().__init__()
        width = dims.n_text_state
        self.embed_tokens = nn.Embedding(dims.n_vocab, width)
        self.embed_positions = nn.Embedding(dims.n_text_ctx, width)
        self.layers = nn.ModuleList(
            DecoderLayer(width, dims.n_text_head, dims.n_text_ffn) for _ in range(dims.n_text_layer)
        )
        self.layer_norm = nn.LayerNorm(width)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return float32 logits [B, T, n_vocab] for hidden states [B, T, d]."""
        return F.linear(self.layer_norm(x), self.embed_tokens.weight).float()


def _feed_forward(layer: EncoderLayer | DecoderLayer, x: torch.Tensor) -> torch.Tensor:
    """Return `x` [B, T, d] plus the layer's feed-forward branch."""
    y: torch.Tensor = layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
    return x + y


class Whisper(nn.Module):
    """The parameters of a Whisper checkpoint; export/families/whisper/graphs.py says what is computed with them."""

    def __init__(self, dims: WhisperDims) -> None:
        super().__init__()
        self.encoder = Encoder(dims)
        self.decoder = Decoder(dims)
