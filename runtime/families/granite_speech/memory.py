"""How much memory Granite Speech takes beside its weights, by length of the kv cache.

The caches are exact. The graphs' peaks are counted from the tensors that are alive at once in them (see
export/families/granite_speech/{modules,graphs}.py), and a third more for what allocators round up and lose.

Peaks measured on the CPU (one thread, fp32) by the estimate: at the widths of granite-speech-4.1-2b with two layers of
each kind (ONNX Runtime) .96 for a prefill of 512 tokens, .81 for 1024, .76 for the encoder on 4 units. With the small
network of the tests .57 to .60 for prefills of 512 to 2048 tokens (TorchScript .48 to .58) and 1.17 to 1.34 for the
encoder on 16 to 256 units (TorchScript .60 to .78): ONNX Runtime's arena grows by powers of two. No NPU was at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.families.granite_speech.options import LEAST_TOKENS, TOKENS_PER_S, GraniteOptions
from runtime.families.granite_speech.settings import GraniteDims, GraniteFrontend, GraniteSettings, bucket_units
from runtime.findings import Finding, binary_size
from runtime.manifest import Content

_F32 = 4  # bytes
_LOST = 4 / 3  # what allocators take for one byte of tensors
_INSTRUCTION = 64  # tokens around the audio


@dataclass(frozen=True)
class CacheNeed:
    """What a kv cache of `cache_length` positions takes, and the largest calls that it has room for; sizes in bytes.

    The prompt is padded to `prefill_length` at most, and holds `audio_s` seconds of audio at most. Encoder and prefill
    run one after the other, so `total_bytes` counts the larger.
    """

    cache_length: int
    prefill_length: int
    audio_s: float
    cache_bytes: int
    prefill_bytes: int
    encoder_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class CacheMemory:
    """What each length of the kv cache takes, shortest first."""

    caches: tuple[CacheNeed, ...]

    @property
    def least_bytes(self) -> int:
        """What the shortest one takes."""
        return self.caches[0].total_bytes

    def finding(self, weights_bytes: int, about: str, device: str, total: int | None) -> Finding:
        """Say what chunks of the usual length take, and how long a cache the device has memory for."""
        chunk_s = GraniteOptions().chunk_s
        usual = need_for(self.caches, chunk_s)
        found = (
            f"chunks of {chunk_s:g} s take about {binary_size(usual.total_bytes)} beside the weights: "
            f"a kv cache of {usual.cache_length} positions {binary_size(usual.cache_bytes)}, prefill "
            f"{binary_size(usual.prefill_bytes)} or encoder {binary_size(usual.encoder_bytes)}"
        )
        if total is None:
            return Finding("ok", about, found)
        fitting = [cache for cache in self.caches if weights_bytes + cache.total_bytes <= total]
        if usual not in fitting:
            return Finding("note", about, f"{found}, {device} has {binary_size(total)}", "pass a lower --chunk to run")
        most = fitting[-1]
        fits = f"{device} has memory for {most.cache_length}, {most.audio_s:g} s of audio"
        return Finding("ok", about, f"{found}; {fits}")


def cache_memory(content: Content, item_bytes: int) -> CacheMemory:
    """Return what the artifact with this manifest takes; pydantic's ValidationError where it is another network's."""
    dims, settings = GraniteDims.model_validate(content.dims), GraniteSettings.model_validate(content.settings)
    frame_s = GraniteFrontend.model_validate(content.frontend).frame_s
    return CacheMemory(cache_needs(dims, settings, frame_s, item_bytes))


def cache_needs(dims: GraniteDims, settings: GraniteSettings, frame_s: float, item_bytes: int) -> tuple[CacheNeed, ...]:
    """Return what each length of the kv cache takes.

    Parameters
    ----------
    dims, settings : GraniteDims, GraniteSettings
        The network and its lengths.
    frame_s : float
        Seconds of an encoder frame.
    item_bytes : int
        Bytes of a number in the artifact's precision.

    """
    return tuple(_need(dims, settings, length, frame_s, item_bytes) for length in settings.cache_lengths)


def _need(dims: GraniteDims, settings: GraniteSettings, length: int, frame_s: float, item_bytes: int) -> CacheNeed:
    prompt = max((prompt for prompt in settings.prefill_lengths if prompt <= length), default=length)
    n_frames = prompt // dims.queries * dims.window
    encoder = encoder_bytes(dims, bucket_units(-(-n_frames // dims.unit)), item_bytes)
    prefill, cache = prefill_bytes(dims, prompt, item_bytes), cache_bytes(dims, length, item_bytes)
    return CacheNeed(
        cache_length=length,
        prefill_length=prompt,
        audio_s=round(n_frames * frame_s, 6),
        cache_bytes=cache,
        prefill_bytes=prefill,
        encoder_bytes=encoder,
        total_bytes=cache + max(prefill, encoder),
    )


def need_for(needs: Sequence[CacheNeed], audio_s: float) -> CacheNeed:
    """Return the need of chunks of `audio_s` seconds: a cache for audio, instruction and the longest answer."""
    answer = max(LEAST_TOKENS, math.ceil(TOKENS_PER_S * audio_s))
    embeds = math.ceil(audio_s * needs[-1].prefill_length / needs[-1].audio_s)
    positions = embeds + _INSTRUCTION + answer
    return next((need for need in needs if need.cache_length >= positions), needs[-1])


def cache_bytes(dims: GraniteDims, length: int, item_bytes: int) -> int:
    """Return the size of keys and values [lm_layers, lm_kv_heads, length, head_dim]."""
    return 2 * dims.lm_layers * dims.lm_kv_heads * dims.head_dim * length * item_bytes


def prefill_bytes(dims: GraniteDims, length: int, item_bytes: int) -> int:
    """Return the peak of `prefill` for a prompt padded to `length`.

    The attention's scores [lm_heads, S, S] in the artifact's precision and twice in float32 (with the mask, as
    weights), or three times the feed-forward's rows [S, lm_ffn]; the mask [lm_heads / lm_kv_heads S, S] float32; six
    rows [S, lm_dim]; the new keys and values, twice while they are stacked. The logits are one row.
    """
    scores = dims.lm_heads * length**2 * (item_bytes + 2 * _F32)
    feed_forward = 3 * length * dims.lm_ffn * item_bytes
    mask = 2 * dims.lm_heads // dims.lm_kv_heads * length**2 * _F32
    rows = 6 * length * dims.lm_dim * item_bytes
    return round(_LOST * (max(scores, feed_forward) + mask + rows + 2 * cache_bytes(dims, length, item_bytes)))


def encoder_bytes(dims: GraniteDims, n_units: int, item_bytes: int) -> int:
    """Return the peak of `encode_project` for so many units, T = n_units * unit frames.

    The largest of three: the attention's scores, those by distance [T, heads, 2 context + 1] beside two of
    [T, heads, context], or of the latter one in the artifact's precision and two in float32; the feed-forward's rows
    [T, enc_ffn] three times; those of the convolution [T, enc_conv_dim] five times. Beside them six rows [T, enc_dim],
    the features twice, and the graph's outputs.
    """
    n_frames = n_units * dims.unit
    per_key = max(4 * item_bytes, item_bytes + 2 * _F32)
    scores = dims.enc_heads * dims.enc_context * per_key
    inner = max(scores, 3 * dims.enc_ffn * item_bytes, 5 * dims.enc_conv_dim * item_bytes)
    rows = 6 * dims.enc_dim * item_bytes
    outputs = dims.enc_dim * item_bytes + 2 * dims.n_ctc * _F32 + dims.lm_dim * item_bytes // dims.downsample
    features = 2 * 2 * dims.n_mels * _F32
    return round(_LOST * n_frames * (inner + rows + features + outputs))
