"""Whisper folders as CTranslate2 writes them, made of transformers' checkpoints without its converter.

tests/export/test_ctranslate2.py compares them with what the converter writes, where it is installed.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer

DTYPES = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.float16: 4, torch.bfloat16: 5}
Variables = dict[str, torch.Tensor]


def write_ctranslate2(source: Path, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the checkpoint of `source`, a folder of transformers, into `folder`."""
    model = transformers.WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    variables, aliases = variables_of(model, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(model_bin(variables, aliases))
    generation = model.generation_config
    languages = getattr(generation, "lang_to_id", None) or {}
    config = {
        "alignment_heads": [[1, 0], [1, 1]],
        "lang_ids": sorted(languages.values()),
        "suppress_ids": generation.suppress_tokens,
        "suppress_ids_begin": generation.begin_suppress_tokens,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in ("tokenizer.json", "preprocessor_config.json"):
        shutil.copy(source / name, folder / name)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokens = [tokenizer.id_to_token(number) for number in range(model.config.vocab_size)]
    (folder / "vocabulary.json").write_text(json.dumps(tokens, indent=2))
    return folder


def variables_of(
    model: transformers.WhisperForConditionalGeneration, dtype: torch.dtype
) -> tuple[Variables, dict[str, str]]:
    """Return CTranslate2's variables for a model, and what it writes as aliases: equal tensors but the first."""
    found = dict(_variables(model))
    variables: Variables = {}
    aliases: dict[str, str] = {}
    for name in sorted(found):
        tensor = found[name]
        if not tensor.dim():
            variables[name] = tensor
            continue
        first = next((other for other, known in variables.items() if known.dim() and torch.equal(known, tensor)), None)
        if first is None:
            variables[name] = tensor
        else:
            aliases[name] = first
    return {name: tensor.to(dtype) if tensor.dim() else tensor for name, tensor in variables.items()}, aliases


def model_bin(
    variables: Mapping[str, torch.Tensor],
    aliases: Mapping[str, str] | None = None,
    *,
    version: int = 6,
    name: str = "WhisperSpec",
    revision: int = 3,
) -> bytes:
    """Return a model.bin of CTranslate2's binary version 6."""
    parts = [struct.pack("<I", version), _string(name), struct.pack("<II", revision, len(variables))]
    for variable, tensor in variables.items():
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        shape = struct.pack(f"<B{tensor.dim()}I", tensor.dim(), *tensor.shape)
        parts += [_string(variable), shape, struct.pack("<BI", DTYPES[tensor.dtype], len(data)), data]
    parts.append(struct.pack("<I", len(aliases or {})))
    parts += [_string(text) for pair in (aliases or {}).items() for text in pair]
    return b"".join(parts)


def _string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _variables(model: transformers.WhisperForConditionalGeneration) -> Iterator[tuple[str, torch.Tensor]]:
    encoder, decoder = model.get_encoder(), model.get_decoder()
    for side, module in (("encoder", encoder), ("decoder", decoder)):
        yield f"{side}/num_heads", torch.tensor(module.layers[0].self_attn.num_heads, dtype=torch.int16)
        yield f"{side}/position_encodings/encodings", module.embed_positions.weight.detach()
        yield from _norm(f"{side}/layer_norm", module.layer_norm)
        for index, layer in enumerate(module.layers):
            place = f"{side}/layer_{index}"
            attention = layer.self_attn
            yield from _norm(f"{place}/self_attention/layer_norm", layer.self_attn_layer_norm)
            yield from _linear(f"{place}/self_attention/linear_0", attention.q_proj, attention.k_proj, attention.v_proj)
            yield from _linear(f"{place}/self_attention/linear_1", attention.out_proj)
            if side == "decoder":
                attention = layer.encoder_attn
                yield from _norm(f"{place}/attention/layer_norm", layer.encoder_attn_layer_norm)
                yield from _linear(f"{place}/attention/linear_0", attention.q_proj)
                yield from _linear(f"{place}/attention/linear_1", attention.k_proj, attention.v_proj)
                yield from _linear(f"{place}/attention/linear_2", attention.out_proj)
            yield from _norm(f"{place}/ffn/layer_norm", layer.final_layer_norm)
            yield from _linear(f"{place}/ffn/linear_0", layer.fc1)
            yield from _linear(f"{place}/ffn/linear_1", layer.fc2)
    for name, convolution in (("conv1", encoder.conv1), ("conv2", encoder.conv2)):
        yield f"encoder/{name}/weight", convolution.weight.detach()
        yield f"encoder/{name}/bias", convolution.bias.detach()
    yield "decoder/embeddings/weight", decoder.embed_tokens.weight.detach()
    yield "decoder/projection/weight", model.proj_out.weight.detach()
    flags = {"activation": 3, "alibi": 0, "alibi_use_positive_positions": 0, "pre_norm": 1, "scale_alibi": 0}
    for name, value in (flags | {"scale_embeddings": 0, "start_from_zero_embedding": 0}).items():
        yield f"decoder/{name}", torch.tensor(value, dtype=torch.int8)
    yield "decoder/alignment_heads", torch.tensor(1, dtype=torch.int16)
    yield "decoder/alignment_layer", torch.tensor(-1, dtype=torch.int16)


def _norm(place: str, module: torch.nn.LayerNorm) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{place}/gamma", module.weight.detach()
    yield f"{place}/beta", module.bias.detach()


def _linear(place: str, *modules: torch.nn.Linear) -> Iterator[tuple[str, torch.Tensor]]:
    """Linears of one input are one, with zeros for a bias that is not there."""
    biases = [torch.zeros(len(module.weight)) if module.bias is None else module.bias.detach() for module in modules]
    yield f"{place}/weight", torch.cat([module.weight.detach() for module in modules])
    yield f"{place}/bias", torch.cat(biases)
