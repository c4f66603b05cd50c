"""Whisper's graphs: log-mel frontend, encoder, prefill of several lengths, a step that returns new cache rows, align.

B = 1 and every shape is static. S = n_audio_ctx, N = n_text_ctx, V = n_vocab, d the width, H the decoder's heads,
dh = d / H, i a decoder layer. The decoder's graphs return only the rows that they add to the kv cache ("delta-KV");
the runtime writes them, which saves a copy of the whole cache a token.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from export.families.whisper.alignment import Alignment
from export.families.whisper.modules import DecoderLayer, KeyValue, Whisper
from export.graphs import DTYPE_NAMES, GraphDefinition
from runtime.families.whisper.logmel import mel_filters
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend
from runtime.manifest import Dtype, TensorSpec

# A score that softmax turns into zero, within fp16's range. Never -inf: some SoCs saturate it.
_MASKED = -1e4
_ROWS = 2


class LogMel(nn.Module):
    """Log-mel features; the Fourier transform is a convolution, as ATC has no STFT and ONNX's is off by 8e-3.

    The kernel holds windowed cosines, then sines, computed in float64: one output channel per frequency and part.
    """

    def __init__(self, frontend: WhisperFrontend) -> None:
        super().__init__()
        self.hop_length = frontend.hop_length
        self.padding = frontend.n_fft // 2
        self.n_frames = frontend.n_samples // frontend.hop_length
        n_freq = self.padding + 1
        sample = torch.arange(frontend.n_fft, dtype=torch.float64, device="cpu")
        freq = torch.arange(n_freq, dtype=torch.float64, device="cpu")[:, None]
        # The remainder is exact, which the cosine of a large angle would not be.
        angle = torch.remainder(freq * sample, frontend.n_fft) * (2 * math.pi / frontend.n_fft)
        window = 0.5 - 0.5 * torch.cos(sample * (2 * math.pi / frontend.n_fft))
        kernel = torch.cat([torch.cos(angle) * window, torch.sin(angle) * window])
        self.n_freq = n_freq
        self.kernel: torch.Tensor
        self.filters: torch.Tensor
        self.register_buffer("kernel", kernel.float()[:, None], persistent=False)  # [2 n_freq, 1, n_fft]
        filters = torch.from_numpy(mel_filters(frontend)).float().T.contiguous()
        self.register_buffer("filters", filters, persistent=False)  # [n_mels, n_freq]

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Return mel [1, n_mels, n_frames] f32 for `audio` [1, n_samples] f32."""
        padded = F.pad(audio[:, None], (self.padding, self.padding), mode="reflect")
        spectrum = F.conv1d(padded, self.kernel, stride=self.hop_length)[..., : self.n_frames]
        real, imaginary = spectrum[:, : self.n_freq], spectrum[:, self.n_freq :]
        power = torch.matmul(self.filters, real * real + imaginary * imaginary)
        log_power = torch.log10(torch.clamp(power, min=1e-10))
        floor = log_power.amax(dim=(1, 2), keepdim=True) - 8.0
        return (torch.maximum(log_power, floor) + 4.0) / 4.0


class _WhisperGraph(nn.Module):
    """Base: holds the model's two halves under the checkpoint's names."""

    def __init__(self, model: Whisper) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.decoder = model.decoder

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The decoder's layers with their type, which nn.ModuleList forgets."""
        return cast("list[DecoderLayer]", self.decoder.layers)


class EncoderGraph(_WhisperGraph):
    """Hidden states of a window, and the decoder's keys and values for them."""

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return hidden [1, S, d], cross_k_0, cross_v_0, ... [1, H, S, dh] for `mel` [1, n_mels, 2 S] f32."""
        hidden = self.encoder(mel.to(self.encoder.conv1.weight.dtype))
        outputs = [hidden]
        for layer in self.decoder_layers:
            outputs += layer.encoder_attn.key_value(hidden)
        return tuple(outputs)


class _CausalGraph(_WhisperGraph):
    """Base: the decoder on T tokens from position 0, causal."""

    def __init__(self, model: Whisper, length: int) -> None:
        super().__init__(model)
        self.length = length
        future = torch.ones(length, length, dtype=torch.bool, device="cpu").triu(1)
        self.future: torch.Tensor
        self.register_buffer("future", future, persistent=False)

    def decode(
        self, tokens: torch.Tensor, cross: list[KeyValue]
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Return hidden states [1, T, d], keys and values of all layers [1, H, T, dh], and queries of the frames."""
        decoder = self.decoder
        x = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[: self.length]
        new: list[torch.Tensor] = []
        queries: list[torch.Tensor] = []
        for layer, cross_key_value in zip(self.decoder_layers, cross, strict=True):
            y = layer.self_attn_layer_norm(x)
            query = layer.self_attn.query(y) * layer.self_attn.head_dim**-0.5
            key, value = layer.self_attn.key_value(y)
            scores = torch.matmul(query, key.transpose(2, 3)).masked_fill(self.future, _MASKED)
            heads = torch.matmul(torch.softmax(scores, dim=-1), value)
            x, cross_query = layer.cross_query(x, heads)
            x = layer.after_cross_query(x, cross_query, cross_key_value)
            new += [key, value]
            queries.append(cross_query)
        return x, new, queries


class PrefillGraph(_CausalGraph):
    """The decoder on a prompt of T tokens; logits of two of its rows."""

    def forward(self, tokens: torch.Tensor, rows: torch.Tensor, *cross: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return logits [1, 2, V] f32 and new_self_k_0, new_self_v_0, ... [1, H, T, dh].

        Parameters
        ----------
        tokens : torch.Tensor
            [1, T] i64, padded at the end with any token.
        rows : torch.Tensor
            [2] i64: the positions whose logits are wanted.
        *cross : torch.Tensor
            cross_k_0, cross_v_0, ... [1, H, S, dh].

        """
        x, new, _ = self.decode(tokens, _pairs(cross))
        return (self.decoder.logits(x.index_select(1, rows)), *new)


class AlignGraph(_CausalGraph):
    """The decoder on a window's text, all of it at once: where its alignment heads look, and how likely it is.

    Parameters
    ----------
    model : Whisper
        The model.
    length : int
        T.
    alignment : Alignment
        Heads, and tokens that are no text.

    """

    def __init__(self, model: Whisper, length: int, alignment: Alignment) -> None:
        super().__init__(model, length)
        unspoken = torch.zeros(self.decoder.embed_tokens.weight.shape[0], dtype=torch.bool, device="cpu")
        unspoken[alignment.special.start : alignment.special.stop] = True
        self.unspoken: torch.Tensor
        self.register_buffer("unspoken", unspoken, persistent=False)
        self.layers = sorted({layer for layer, _ in alignment.heads})
        for wanted in self.layers:
            heads = torch.tensor([head for layer, head in alignment.heads if layer == wanted], device="cpu")
            self.register_buffer(f"heads_{wanted}", heads, persistent=False)

    def forward(self, tokens: torch.Tensor, *cross: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores [1, A, T, S] and probabilities [1, T - 1] f32.

        `scores` are those of A alignment heads, before their softmax over the frames. `probabilities[i]` is that of
        token i + 1 behind those before it, among all tokens that are text: 0 where it is none. (Not its logarithm: ONNX
        Runtime's sum over the vocabulary is 3e-4 off in ReduceLogSumExp.)

        Parameters
        ----------
        tokens : torch.Tensor
            [1, T] i64, padded at the end with any token.
        *cross : torch.Tensor
            cross_k_0, cross_v_0, ... [1, H, S, dh].

        """
        pairs = _pairs(cross)
        x, _, queries = self.decode(tokens, pairs)
        scores = []
        for layer in self.layers:
            heads = self.get_buffer(f"heads_{layer}")
            query = queries[layer].index_select(1, heads) * self.decoder_layers[layer].encoder_attn.head_dim ** -0.5
            scores.append(torch.matmul(query, pairs[layer][0].index_select(1, heads).transpose(2, 3)))
        logits = self.decoder.logits(x[:, :-1]).masked_fill(self.unspoken, _MASKED)
        probabilities = torch.gather(torch.softmax(logits, dim=2), 2, tokens[:, 1:, None])[:, :, 0]
        return torch.cat(scores, dim=1), probabilities


class StepGraph(_WhisperGraph):
    """The decoder on one token, with the kv cache of those before it."""

    def __init__(self, model: Whisper, n_text_ctx: int) -> None:
        super().__init__(model)
        self.n_text_ctx = n_text_ctx
        self.positions: torch.Tensor
        self.register_buffer("positions", torch.arange(n_text_ctx, device="cpu"), persistent=False)

    def forward(self, tokens: torch.Tensor, pos: torch.Tensor, *cache: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return logits [1, 1, V] f32 and new_self_k_0, new_self_v_0, ... [1, H, 1, dh].

        Parameters
        ----------
        tokens : torch.Tensor
            [1, 1] i64.
        pos : torch.Tensor
            [1] i64: the token's position, and the number of cache rows that are read.
        *cache : torch.Tensor
            cross_k_0, cross_v_0, ... [1, H, S, dh], then self_k_0, self_v_0, ... [1, H, N, dh]. Rows from `pos` on
            are not read but must be finite.

        """
        decoder = self.decoder
        x = decoder.embed_tokens(tokens) + decoder.embed_positions(pos)
        unused = self.positions >= pos  # [N]
        cross, cached = cache[: len(cache) // 2], cache[len(cache) // 2 :]
        new: list[torch.Tensor] = []
        for layer, cross_key_value, (old_key, old_value) in zip(
            self.decoder_layers, _pairs(cross), _pairs(cached), strict=True
        ):
            y = layer.self_attn_layer_norm(x)
            query = layer.self_attn.query(y) * layer.self_attn.head_dim**-0.5
            key, value = layer.self_attn.key_value(y)
            # Masked by replacement, not by addition: garbage rows may overflow to infinity in fp16.
            old_scores = torch.matmul(query, old_key.transpose(2, 3)).masked_fill(unused, _MASKED)
            scores = torch.cat([old_scores, torch.matmul(query, key.transpose(2, 3))], dim=-1)
            weights = torch.softmax(scores, dim=-1)  # [1, H, 1, N + 1]
            heads = torch.matmul(weights[..., : self.n_text_ctx], old_value)
            heads = heads + torch.matmul(weights[..., self.n_text_ctx :], value)
            x = layer.after_self_attention(x, heads, cross_key_value)
            new += [key, value]
        return (decoder.logits(x), *new)


def whisper_graphs(
    model: Whisper, dims: WhisperDims, frontend: WhisperFrontend, dtype: torch.dtype, alignment: Alignment
) -> dict[str, GraphDefinition]:
    """Return the graphs of a model: frontend, encoder, prefill_T for each T of `dims.prefill_lengths`, step, align.

    Parameters
    ----------
    model : Whisper
        With its parameters in `dtype`, or on the meta device.
    dims, frontend : WhisperDims, WhisperFrontend
        The network and its front-end.
    dtype : torch.dtype
        Of hidden states and the kv cache. Audio, mel and logits are float32.
    alignment : Alignment
        What the graph align is made for.

    """
    model = model.eval().requires_grad_(requires_grad=False)
    name = DTYPE_NAMES[dtype]
    audio = TensorSpec(name="audio", dtype="float32", shape=(1, frontend.n_samples))
    mel = TensorSpec(name="mel", dtype="float32", shape=(1, dims.n_mels, dims.n_frames))
    hidden = TensorSpec(name="hidden", dtype=name, shape=(1, dims.n_audio_ctx, dims.n_audio_state))
    cross = _key_value_specs("cross", name, dims, dims.n_audio_ctx)
    graphs = [
        GraphDefinition("frontend", LogMel(frontend).eval(), (audio,), (mel,)),
        GraphDefinition("encoder", EncoderGraph(model).eval(), (mel,), (hidden, *cross)),
    ]
    for length in dims.prefill_lengths:
        tokens = TensorSpec(name="tokens", dtype="int64", shape=(1, length))
        rows = TensorSpec(name="rows", dtype="int64", shape=(_ROWS,))
        logits = TensorSpec(name="logits", dtype="float32", shape=(1, _ROWS, dims.n_vocab))
        new = _key_value_specs("new_self", name, dims, length)
        prefill = PrefillGraph(model, length).eval()
        graphs.append(GraphDefinition(f"prefill_{length}", prefill, (tokens, rows, *cross), (logits, *new)))
    tokens = TensorSpec(name="tokens", dtype="int64", shape=(1, 1))
    pos = TensorSpec(name="pos", dtype="int64", shape=(1,))
    logits = TensorSpec(name="logits", dtype="float32", shape=(1, 1, dims.n_vocab))
    cache = _key_value_specs("self", name, dims, dims.n_text_ctx)
    new = _key_value_specs("new_self", name, dims, 1)
    step = StepGraph(model, dims.n_text_ctx).eval()
    graphs.append(GraphDefinition("step", step, (tokens, pos, *cross, *cache), (logits, *new)))
    tokens = TensorSpec(name="tokens", dtype="int64", shape=(1, dims.n_text_ctx))
    size = (1, len(alignment.heads), dims.n_text_ctx, dims.n_audio_ctx)
    scores = TensorSpec(name="scores", dtype=name, shape=size)
    probabilities = TensorSpec(name="probabilities", dtype="float32", shape=(1, dims.n_text_ctx - 1))
    align = AlignGraph(model, dims.n_text_ctx, alignment).eval()
    graphs.append(GraphDefinition("align", align, (tokens, *cross), (scores, probabilities)))
    return {graph.name: graph for graph in graphs}


def _key_value_specs(prefix: str, dtype: Dtype, dims: WhisperDims, rows: int) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=f"{prefix}_{kind}_{layer}", dtype=dtype, shape=(1, dims.n_text_head, rows, dims.head_dim))
        for layer in range(dims.n_text_layer)
        for kind in "kv"
    )


def _pairs(tensors: tuple[torch.Tensor, ...]) -> list[KeyValue]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))
