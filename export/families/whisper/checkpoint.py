"""Reads a Whisper checkpoint in the layout of the hub: what network it holds, its front-end and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from export.checkpoint import Checkpoint, check_tensors, open_checkpoint
from export.families.whisper.alignment import stated_heads
from export.families.whisper.generation import (
    GENERATION_CONFIG,
    generation_notes,
    generation_values,
    whisper_settings,
)
from export.families.whisper.modules import Whisper
from export.families.whisper.tokenizer import base_model, check_stated_ids, read_tokenizer, tokenizer_files
from export.json_files import read_feature_extractor, read_json
from export.safetensors_writer import TensorInfo
from runtime.errors import InputError
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend

# The vocabulary projection. Some checkpoints hold it beside the token embedding that it is tied to.
_TIED = "proj_out.weight"
_EMBEDDING = "decoder.embed_tokens.weight"
_FRONTENDS = ("preprocessor_config.json", "processor_config.json")
_LARGEST = 1 << 20


class WhisperCheckpoint:
    """A checkpoint's tensors under the names of our modules, each checked against the network.

    `notes` are lines for the user: what the checkpoint lacks, and what of its settings the artifact does not honour.

    Parameters
    ----------
    folder : Path
        As transformers writes it.
    tokenizer : Path or None
        Folder whose tokenizer counts in place of the checkpoint's.

    Raises
    ------
    InputError
        The folder holds no complete Whisper checkpoint; the message says what is wrong with it.

    """

    def __init__(self, folder: Path, tokenizer: Path | None = None) -> None:
        config = read_json(folder / "config.json")
        self.dims = whisper_dims(folder / "config.json")
        self.frontend = whisper_frontend(folder, self.dims)
        self.tokenizer_folder = tokenizer or folder
        read = read_tokenizer(self.tokenizer_folder, base_model(config))
        self.tokenizer_json = read.to_str().encode()
        check_stated_ids(config, read, f"{folder}: config.json")
        values, source = generation_values(folder)
        self.settings = whisper_settings(values, self.dims, read, f"{folder}: {source}")
        self.alignment_heads = stated_heads(values.get("alignment_heads"), self.dims, f"{folder}: {source}")
        self.notes = (*_notes(folder, config), *generation_notes(values, self.settings, source))
        self._checkpoint: Checkpoint = open_checkpoint(folder)
        self._names = {name.removeprefix("model."): name for name in self._checkpoint.tensors}
        self._untie(folder)
        self.tensors: Mapping[str, TensorInfo] = {
            name: self._checkpoint.tensors[stored] for name, stored in self._names.items()
        }
        # Only now: the number of layers that config.json states may be any.
        if self.dims.n_audio_layer + self.dims.n_text_layer > len(self.tensors):
            raise InputError(f"{folder}: config.json states more layers than the checkpoint has tensors; get it again")
        check_tensors(self.tensors, parameter_shapes(self.dims), str(folder))
        side = (folder / name for name in ("config.json", GENERATION_CONFIG, *_FRONTENDS))
        self.files = (
            *(file for file in side if file.is_file()),
            *tokenizer_files(self.tokenizer_folder),
            *self._checkpoint.files,
        )

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor by our modules' name for it."""
        return self._checkpoint.read(self._names[name])

    def _untie(self, folder: Path) -> None:
        """Leave out the vocabulary projection where it repeats the token embedding; refuse another."""
        if _TIED not in self._names or _EMBEDDING not in self._names:
            return
        projection, embedding = self.read(_TIED), self.read(_EMBEDDING)
        if projection.shape != embedding.shape or not torch.equal(projection.to(embedding.dtype), embedding):
            raise InputError(
                f"{folder}: expected {_TIED} to be tied to {_EMBEDDING}, found other values; not supported"
            )
        del self._names[_TIED]


def _notes(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Return what is said of a folder beside its generation settings."""
    notes = [
        f"config.json: {key} {config[key]!r} is not honoured, as in transformers; it belongs into {GENERATION_CONFIG}"
        for key in ("language", "task")
        if config.get(key) is not None
    ]
    if not has_frontend(folder):
        notes.append(f"{_FRONTENDS[0]}: not there; the standard log-mel front-end of Whisper is taken")
    return notes


def has_frontend(folder: Path) -> bool:
    """Return whether a checkpoint states its front-end."""
    return any((folder / name).is_file() for name in _FRONTENDS)


def parameter_shapes(dims: WhisperDims) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter of the network."""
    with torch.device("meta"):
        model = Whisper(dims)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def whisper_dims(config_json: Path) -> WhisperDims:
    """Return the network that a config.json describes.

    Raises
    ------
    InputError
        A key is missing, or the network is no plain Whisper.

    """
    config = read_json(config_json)
    for key, plain in (("activation_function", "gelu"), ("scale_embedding", False), ("tie_word_embeddings", True)):
        if config.get(key, plain) != plain:
            raise InputError(f"{config_json}: expected {key} {plain!r}, found {config[key]!r}; not supported")
    keys = {
        "n_mels": "num_mel_bins",
        "n_audio_ctx": "max_source_positions",
        "n_audio_state": "d_model",
        "n_audio_head": "encoder_attention_heads",
        "n_audio_layer": "encoder_layers",
        "n_audio_ffn": "encoder_ffn_dim",
        "n_vocab": "vocab_size",
        "n_text_ctx": "max_target_positions",
        "n_text_state": "d_model",
        "n_text_head": "decoder_attention_heads",
        "n_text_layer": "decoder_layers",
        "n_text_ffn": "decoder_ffn_dim",
    }
    for key in keys.values():
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _LARGEST:
            raise InputError(f"{config_json}: expected {key} to be a number from 1 to {_LARGEST}, found {value!r:.80}")
    dims = WhisperDims(**{name: config[key] for name, key in keys.items()})
    for heads in (dims.n_audio_head, dims.n_text_head):
        if dims.n_audio_state % heads:
            raise InputError(f"{config_json}: expected d_model {dims.n_audio_state} to be a multiple of {heads} heads")
    return dims


def whisper_frontend(folder: Path, dims: WhisperDims) -> WhisperFrontend:
    """Return the log-mel front-end of a checkpoint (preprocessor_config.json, or its part of processor_config.json).

    Without either file it is OpenAI's, for the network's mels and window.

    Raises
    ------
    InputError
        A front-end that does not fit the network.

    """
    if not has_frontend(folder):
        return WhisperFrontend(n_mels=dims.n_mels, n_samples=dims.n_frames * 160)
    path, config = read_feature_extractor(folder)
    names = {"sampling_rate": "sample_rate", "n_fft": "n_fft", "hop_length": "hop_length"}
    try:
        values: dict[str, Any] = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
        frontend = WhisperFrontend(
            **values,
            n_mels=config["feature_size"],
            n_samples=config["chunk_length"] * values.get("sample_rate", 16000),
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{path}: expected a Whisper feature extractor ({str(error).splitlines()[0]})") from error
    if min(frontend.hop_length, frontend.n_fft, frontend.sample_rate) < 1:
        raise InputError(f"{path}: expected positive sampling_rate, hop_length and n_fft, found {values}")
    frames = frontend.n_samples // frontend.hop_length
    if (frontend.n_mels, frames) != (dims.n_mels, dims.n_frames) or config.get("do_normalize"):
        raise InputError(
            f"{path}: expected {dims.n_mels} mels x {dims.n_frames} frames without do_normalize, "
            f"found {frontend.n_mels} x {frames}; the file is of another model"
        )
    return frontend
