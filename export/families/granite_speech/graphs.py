"""Granite Speech's graphs: `encode_project`, `embed`, `prefill` and `decode`.

One recording, or one sequence, at a time. Lengths are open: each graph is exact at every length, and callers pad to
few lengths for a device's sake. T = n_units * unit is the number of frames, L the language model's layers, H its heads
of queries, G those of keys, dh a head's size, V the vocabulary. `prefill` and `decode` return the rows that they add to
the kv cache, which the caller keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from export.families.granite_speech.language_model import (
    Decoder,
    DecoderLayer,
    KeyValue,
    LanguageModel,
    rope_frequencies,
    rope_rotation,
)
from export.families.granite_speech.modules import MASKED, Granite, relative_positions, softmax
from export.graphs import DTYPE_NAMES, GraphDefinition
from runtime.families.granite_speech.settings import (
    DECODE,
    EMBED,
    ENCODE_PROJECT,
    PREFILL,
    GraniteDims,
    GraniteScales,
    GraniteSettings,
)
from runtime.manifest import Dtype, TensorSpec

# A length to trace with: no other size of the network's.
_EXAMPLE = 7


class EncodeProjectGraph(nn.Module):
    """Features of a whole recording to the encoder's frames, the embeddings of the audio and the CTC head's logits."""

    def __init__(self, model: Granite, dims: GraniteDims) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.projector = model.projector
        self.unit = dims.unit
        self.n_embeds = dims.n_embeds(dims.unit)
        self.distances: torch.Tensor
        self.register_buffer("distances", relative_positions(dims), persistent=False)

    def forward(self, features: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return encoder_out [n_units, unit, d], audio_embeds [n_units, n_embeds, lm_dim], ctc_logits f32.

        Frames that do not count are zero in encoder_out, which the projector reads, and in ctc_logits
        [n_units, unit, n_ctc].

        Parameters
        ----------
        features : torch.Tensor
            f32 [n_units, unit, 2 n_mels]: parts of one recording, one behind the other.
        length : torch.Tensor
            i64 [1]: the frames that count; the others may hold anything.

        """
        rows = features.flatten(0, 1)
        dead = torch.cumsum(torch.ones_like(rows[:, 0], dtype=torch.int64), dim=0) > length
        silent = dead.unsqueeze(1)
        rows = rows.masked_fill(silent, 0.0).to(self.encoder.input_linear.weight.dtype)
        encoded = self.encoder(rows, dead, self.distances).masked_fill(silent, 0.0)
        logits = self.encoder.out(encoded).float().masked_fill(silent, 0.0)
        embeds = self.projector(encoded)
        unit = (-1, self.unit)
        return (
            encoded.view(*unit, encoded.shape[1]),
            embeds.view(-1, self.n_embeds, embeds.shape[1]),
            logits.view(*unit, logits.shape[1]),
        )


class EmbedGraph(nn.Module):
    """Tokens to embeddings, under the checkpoint's name for them."""

    def __init__(self, model: Granite) -> None:
        super().__init__()
        embed_tokens = model.language_model.model.embed_tokens
        self.language_model = nn.ModuleDict({"model": nn.ModuleDict({"embed_tokens": embed_tokens})})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return embeds [1, S, d] for `tokens` i64 [1, S]; the embedding multiplier comes later."""
        decoder = cast("nn.ModuleDict", self.language_model["model"])
        embeds: torch.Tensor = decoder["embed_tokens"](tokens)
        return embeds


class _LanguageGraph(nn.Module):
    """Base: the language model under the checkpoint's names."""

    def __init__(self, model: Granite, dims: GraniteDims, scales: GraniteScales) -> None:
        super().__init__()
        self.language_model: LanguageModel = model.language_model
        self.multiplier = scales.embedding_multiplier
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", rope_frequencies(dims, scales), persistent=False)

    @property
    def decoder(self) -> Decoder:
        """Embeddings, layers, norm."""
        return self.language_model.model

    def layers(self) -> Iterator[DecoderLayer]:
        """Yield the layers with their type, which nn.ModuleList forgets."""
        yield from cast("list[DecoderLayer]", self.decoder.layers)


class PrefillGraph(_LanguageGraph):
    """The language model on a prompt from position 0, causal; logits of its last row."""

    def __init__(self, model: Granite, dims: GraniteDims, scales: GraniteScales) -> None:
        super().__init__(model, dims, scales)
        self.queries_per_key = dims.lm_heads // dims.lm_kv_heads

    def forward(self, embeds: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits [1, V] f32, new_k and new_v [L, G, S, dh].

        Parameters
        ----------
        embeds : torch.Tensor
            [1, S, d]: of tokens and audio, not multiplied yet.
        length : torch.Tensor
            i64 [1]: the rows that count; the others may hold anything. The logits are those behind the last of them.

        """
        rows = embeds.squeeze(0)
        counted = torch.cumsum(torch.ones_like(rows[:, 0], dtype=torch.int64), dim=0)  # 1, 2, ... S
        x = rows.float().masked_fill((counted > length).unsqueeze(1), 0.0) * self.multiplier
        rotation = rope_rotation((counted - 1).float(), self.frequencies)
        future = (counted.unsqueeze(0) > counted.unsqueeze(1)).float() * MASKED  # [S, S]
        mask = torch.cat([future] * self.queries_per_key)  # [H / G * S, S]
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for layer in self.layers():
            y = layer.input_layernorm(x)
            key, value = layer.self_attn.key_value(y, rotation)
            scores = torch.bmm(layer.self_attn.query(y, rotation), key.transpose(1, 2))
            x = layer.after_attention(x, torch.bmm(softmax(scores.float() + mask, value.dtype), value))
            keys.append(key)
            values.append(value)
        return self.language_model.logits(x.index_select(0, length - 1)), torch.stack(keys), torch.stack(values)


class DecodeGraph(_LanguageGraph):
    """The language model on one token, with the kv cache of those before it."""

    def forward(
        self, tokens: torch.Tensor, pos: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits [1, V] f32, new_k and new_v [L, G, 1, dh].

        Parameters
        ----------
        tokens : torch.Tensor
            i64 [1, 1].
        pos : torch.Tensor
            i64 [1]: the token's position, and the number of cache rows that are read.
        k, v : torch.Tensor
            [L, G, C, dh]: the cache. Rows from `pos` on are not read but must be finite.

        """
        x = self.decoder.embed_tokens(tokens).squeeze(0).float() * self.multiplier
        rotation = rope_rotation(pos.float(), self.frequencies)
        unused = torch.cumsum(torch.ones_like(k[0, 0, :, 0], dtype=torch.int64), dim=0) > pos  # [C]
        new: list[KeyValue] = []
        for number, layer in enumerate(self.layers()):
            y = layer.input_layernorm(x)
            query, (key, value) = layer.self_attn.query(y, rotation), layer.self_attn.key_value(y, rotation)
            # Masked by replacement, not by addition: garbage rows may overflow to infinity in fp16.
            old_scores = torch.bmm(query, k[number].transpose(1, 2)).float().masked_fill(unused, MASKED)
            scores = torch.cat([old_scores, torch.bmm(query, key.transpose(1, 2)).float()], dim=-1)
            weights = softmax(scores, value.dtype)  # [G, H / G, C + 1]
            attended = torch.bmm(weights[..., :-1], v[number]) + weights[..., -1:] * value
            x = layer.after_attention(x, attended)
            new.append((key, value))
        keys, values = zip(*new, strict=True)
        return self.language_model.logits(x), torch.stack(keys), torch.stack(values)


def granite_graphs(
    model: Granite, dims: GraniteDims, settings: GraniteSettings, dtype: torch.dtype
) -> dict[str, GraphDefinition]:
    """Return the graphs `encode_project`, `embed`, `prefill` and `decode`.

    Parameters
    ----------
    model : Granite
        With its parameters in `dtype`, or on the meta device.
    dims, settings : GraniteDims, GraniteSettings
        The network and its constants.
    dtype : torch.dtype
        Of embeddings, hidden states and the kv cache. Features and logits are float32.

    """
    model = model.eval().requires_grad_(requires_grad=False)
    name, scales = DTYPE_NAMES[dtype], settings.scales
    length, logits = _spec("length", "int64", 1), _spec("logits", "float32", 1, dims.n_vocab)
    encode = GraphDefinition(
        ENCODE_PROJECT,
        EncodeProjectGraph(model, dims).eval(),
        (_spec("features", "float32", "n_units", dims.unit, 2 * dims.n_mels), length),
        (
            _spec("encoder_out", name, "n_units", dims.unit, dims.enc_dim),
            _spec("audio_embeds", name, "n_units", dims.n_embeds(dims.unit), dims.lm_dim),
            _spec("ctc_logits", "float32", "n_units", dims.unit, dims.n_ctc),
        ),
        {"n_units": 1},
    )
    embed = GraphDefinition(
        EMBED,
        EmbedGraph(model).eval(),
        (_spec("tokens", "int64", 1, "n_tokens"),),
        (_spec("embeds", name, 1, "n_tokens", dims.lm_dim),),
        {"n_tokens": 1},
        {"n_tokens": _EXAMPLE},
    )

    def rows(prefix: str, count: int | str) -> tuple[TensorSpec, TensorSpec]:
        """Return keys and values of `count` positions."""
        shape = (dims.lm_layers, dims.lm_kv_heads, count, dims.head_dim)
        return _spec(f"{prefix}k", name, *shape), _spec(f"{prefix}v", name, *shape)

    prefill = GraphDefinition(
        PREFILL,
        PrefillGraph(model, dims, scales).eval(),
        (_spec("embeds", name, 1, "n_prompt", dims.lm_dim), length),
        (logits, *rows("new_", "n_prompt")),
        {"n_prompt": 1},
        {"n_prompt": _EXAMPLE},
    )
    decode = GraphDefinition(
        DECODE,
        DecodeGraph(model, dims, scales).eval(),
        (_spec("tokens", "int64", 1, 1), _spec("pos", "int64", 1), *rows("", "n_cache")),
        (logits, *rows("new_", 1)),
        {"n_cache": 1},
        {"n_cache": _EXAMPLE},
    )
    return {graph.name: graph for graph in (encode, embed, prefill, decode)}


def _spec(name: str, dtype: Dtype, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)
