"""Whisper's weights as whisper.cpp reads them: matrices as float16, the rest as float32."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from runtime.mel import slaney_filters

_MAGIC, _FLOAT16 = 0x67676D6C, 1
_RATE, _N_FFT = 16_000, 400
# transformers' names to OpenAI's, one after the other.
_NAMES = {
    "model.": "",
    ".layers.": ".blocks.",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "self_attn_layer_norm": "attn_ln",
    "final_layer_norm": "mlp_ln",
    "encoder_attn": "cross_attn",
    "self_attn": "attn",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "embed_tokens": "token_embedding",
    "embed_positions.weight": "positional_embedding",
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
}


def write_ggml(checkpoint: Path, target: Path) -> None:
    """Write a transformers folder's weights, mel filters and vocabulary as one file of whisper.cpp's first format."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        encoder = (config["d_model"], config["encoder_attention_heads"], config["encoder_layers"])
        decoder = (config["d_model"], config["decoder_attention_heads"], config["decoder_layers"])
        sizes = (config["max_source_positions"], *encoder, config["max_target_positions"], *decoder)
        file.write(_ints(_MAGIC, config["vocab_size"], *sizes, config["num_mel_bins"], _FLOAT16))
        filters = slaney_filters(_RATE, _N_FFT, config["num_mel_bins"]).T.astype("<f4")
        file.write(_ints(*filters.shape) + filters.tobytes())
        words = _vocabulary(checkpoint / "tokenizer.json", config["eos_token_id"])
        file.write(_ints(len(words)) + b"".join(_ints(len(word)) + word for word in words))
        for name, values in load_file(checkpoint / "model.safetensors").items():
            if name != "proj_out.weight":
                file.write(_tensor(name, values))


def _tensor(name: str, values: Any) -> bytes:
    for theirs, openai in _NAMES.items():
        name = name.replace(theirs, openai)
    if "conv" in name and name.endswith("bias"):
        values = values[:, None]
    half = values.ndim > 1 and name.endswith("weight")
    data: bytes = values.astype("<f2" if half else "<f4").tobytes()
    encoded = name.encode()
    return _ints(values.ndim, len(encoded), int(half), *reversed(values.shape)) + encoded + data


def _vocabulary(file: Path, end: int) -> list[bytes]:
    """Return the bytes of each token of text; they stand before the end token."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte = {character: value for value, character in bytes_to_unicode().items()}
    tokens = {index: token for token, index in json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"].items()}
    return [bytes(byte[character] for character in tokens[index]) for index in range(end)]


def _ints(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *map(int, values))
