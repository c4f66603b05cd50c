"""Reads OpenAI's own Whisper files (tiny.en.pt) and fine-tunes saved in their layout: dims and model_state_dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from export.checkpoint import RenamedCheckpoint, TorchCheckpoint, check_tensors, load_pickle, plain_names
from export.families.whisper.alignment import published_heads
from export.families.whisper.checkpoint import parameter_shapes
from export.families.whisper.generation import whisper_settings
from export.families.whisper.openai_vocabulary import openai_rules, openai_tokenizer
from export.families.whisper.tokenizer import read_tokenizer, tokenizer_files
from export.safetensors_writer import TensorInfo
from runtime.errors import InputError
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend, WhisperSettings

_DIMS = "dims"
_SIDES, _SIZES = ("audio", "text"), ("ctx", "state", "head", "layer")
_KEYS = ("n_mels", "n_vocab", *(f"n_{side}_{size}" for side in _SIDES for size in _SIZES))
_LARGEST = 1 << 20
# openai/whisper takes a smaller vocabulary for an English-only one. Languages are what is beyond the other.
_MULTILINGUAL, _WITHOUT_LANGUAGES = 51865, 51765
# Buffers of some versions that are no weights.
_LEFT_OUT = {"decoder.mask", "alignment_heads"}
# OpenAI's names to ours, one after the other.
_NAMES = {
    r"\.blocks\.": ".layers.",
    r"\.cross_attn\.": ".encoder_attn.",
    r"\.cross_attn_ln\.": ".encoder_attn_layer_norm.",
    r"\.attn\.": ".self_attn.",
    r"\.attn_ln\.": ".self_attn_layer_norm.",
    r"\.query\.": ".q_proj.",
    r"\.key\.": ".k_proj.",
    r"\.value\.": ".v_proj.",
    r"\.out\.": ".out_proj.",
    r"\.mlp\.0\.": ".fc1.",
    r"\.mlp\.2\.": ".fc2.",
    r"\.mlp_ln\.": ".final_layer_norm.",
    r"^encoder\.ln_post\.": "encoder.layer_norm.",
    r"^decoder\.ln\.": "decoder.layer_norm.",
    r"^decoder\.token_embedding\.": "decoder.embed_tokens.",
    r"\.positional_embedding$": ".embed_positions.weight",
}


class OpenAIWhisper:
    """A file's tensors under the names of our modules; the attributes are those of WhisperCheckpoint.

    Parameters
    ----------
    path : Path
        The file.
    tokenizer : Path or None
        Folder of the tokenizer, which is not in the file; None for OpenAI's own.

    Raises
    ------
    InputError
        No complete Whisper of this layout; the message says what is wrong with it.
    EnvironmentNotFitError
        OpenAI's tokenizer cannot be had.

    """

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, tokenizer: Path | None) -> None:
        self.dims = _dims(load_pickle(path), path)
        stored = TorchCheckpoint((path,))
        plain = plain_names(stored.tensors, str(path))
        names = {_our_name(name): plain[name] for name in plain if name not in _LEFT_OUT}
        self._checkpoint = RenamedCheckpoint(stored, names)
        self.tensors: Mapping[str, TensorInfo] = self._checkpoint.tensors
        # Only now: the number of layers that dims states may be any.
        if self.dims.n_audio_layer + self.dims.n_text_layer > len(self.tensors):
            raise InputError(f"{path}: dims states more layers than there are tensors; get the file again")
        check_tensors(self.tensors, parameter_shapes(self.dims), str(path))
        self.frontend = WhisperFrontend(n_mels=self.dims.n_mels, n_samples=self.dims.n_frames * 160)
        self.tokenizer_folder = tokenizer
        read = self._openai_tokenizer() if tokenizer is None else read_tokenizer(tokenizer)
        self.tokenizer_json = read.to_str().encode()
        self.settings = self._settings(path, read)
        self.alignment_heads = published_heads(path, self.dims)
        self.files = (*(tokenizer_files(tokenizer) if tokenizer else ()), path)

    def _openai_tokenizer(self) -> Tokenizer:
        multilingual = self.dims.n_vocab >= _MULTILINGUAL
        return openai_tokenizer(self.dims.n_vocab - _WITHOUT_LANGUAGES - multilingual, multilingual=multilingual)

    def _settings(self, path: Path, tokenizer: Tokenizer) -> WhisperSettings:
        settings = whisper_settings(openai_rules(tokenizer), self.dims, tokenizer, str(path))
        size = settings.timestamp_begin + self.dims.n_audio_ctx + 1
        if size != self.dims.n_vocab:
            raise InputError(
                f"{path}: expected a tokenizer for a vocabulary of {self.dims.n_vocab}, found one for {size}; "
                "it is another model's; give the right one by --tokenizer FOLDER or hub id"
            )
        return settings

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor by our modules' name for it."""
        return self._checkpoint.read(name)


def _dims(state: Mapping[str, Any], path: Path) -> WhisperDims:
    """Return the network that the file describes; its feed-forward layers are four times as wide as the others."""
    stated = state.get(_DIMS)
    if not isinstance(stated, dict):
        raise InputError(
            f"{path}: expected dims and model_state_dict, as openai/whisper saves them, found "
            f"{', '.join(map(repr, list(state)[:4]))}; for transformers' layout give the folder with config.json"
        )
    for key in _KEYS:
        value = stated.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
            raise InputError(f"{path}: expected {key} in dims to be a number from 1 to {_LARGEST}, found {value!r}")
    for side in _SIDES:
        width, heads = stated[f"n_{side}_state"], stated[f"n_{side}_head"]
        if width % heads:
            raise InputError(
                f"{path}: expected n_{side}_state {width} to be a multiple of {heads} heads; not supported"
            )
    ffn = {f"n_{side}_ffn": 4 * stated[f"n_{side}_state"] for side in _SIDES}
    return WhisperDims(**{key: stated[key] for key in _KEYS}, **ffn)


def _our_name(name: str) -> str:
    """Return our modules' name for one of openai/whisper's."""
    for theirs, ours in _NAMES.items():
        name = re.sub(theirs, ours, name)
    return name
