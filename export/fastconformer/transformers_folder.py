"""Reads a FastConformer in transformers' layout: config.json, a feature extractor, tokenizer.json and tensors."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from export.checkpoint import Checkpoint, open_checkpoint
from export.json_files import read_feature_extractor, read_json
from export.lora import AdaptedCheckpoint
from export.safetensors_writer import TensorInfo
from runtime.errors import InputError
from runtime.fastconformer.settings import FastConformerDims, FastConformerFrontend, FastConformerSettings
from runtime.mel import slaney_filters

TOKENIZER_FILE = "tokenizer.json"
# NeMo's names of two buffers that transformers does not store.
WINDOW = "preprocessor.featurizer.window"
FILTERS = "preprocessor.featurizer.fb"
_LARGEST = 1 << 20
# What the graphs compute, with transformers' default for a key that is not there.
_SUPPORTED_ENCODER: dict[str, tuple[Any, Any]] = {
    "hidden_act": ("silu", "silu"),
    "subsampling_factor": (8, 8),
    "subsampling_conv_kernel_size": (3, 3),
    "subsampling_conv_stride": (2, 2),
}
_ENCODER_DIMS = {
    "n_mels": "num_mel_bins",
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "conv_kernel": "conv_kernel_size",
    "subsampling_channels": "subsampling_conv_channels",
}
# transformers' names to NeMo's.
ENCODER_NAMES = {
    r"encoder\.subsampling\.layers\.": "encoder.pre_encode.conv.",
    r"encoder\.subsampling\.linear\.": "encoder.pre_encode.out.",
    r"(.*\.self_attn)\.([qkv])_proj\.": r"\1.linear_\2.",
    r"(.*\.self_attn)\.o_proj\.": r"\1.linear_out.",
    r"(.*\.self_attn)\.relative_k_proj\.": r"\1.linear_pos.",
    r"(.*\.self_attn)\.bias_([uv])$": r"\1.pos_bias_\2",
    r"(.*\.conv)\.norm\.": r"\1.batch_norm.",
}


class FastConformerFolder(ABC):
    """A FastConformer of transformers under NeMo's names, with the window and the filters that it leaves to code.

    Parameters
    ----------
    folder, tokenizer : Path
        The checkpoint, and the folder of its tokenizer.json.
    adapter : Path or None
        Folder of a LoRA adapter to merge into the weights.

    Attributes
    ----------
    tensors, read, files
        As of a Checkpoint.
    dims, frontend, settings : FastConformerDims, FastConformerFrontend, FastConformerSettings
        What its JSON files say.
    tokenizer : bytes
        tokenizer.json.

    Raises
    ------
    InputError
        A file is missing or damaged, or states an option that is not supported; names key and value.

    """

    # The class of the feature extractor, and transformers' names of all tensors to NeMo's.
    feature_extractor: str
    names: Mapping[str, str]

    def __init__(self, folder: Path, *, tokenizer: Path, adapter: Path | None) -> None:
        self._path = folder / "config.json"
        self._config = read_json(self._path)
        self.settings = self.read_settings()
        self.dims = self.read_dims()
        path, self.frontend = frontend_of(folder, self.dims, self.feature_extractor)
        self.tokenizer = _tokenizer(tokenizer / TOKENIZER_FILE, self.dims.n_vocab)
        self._checkpoint: Checkpoint = open_checkpoint(folder)
        if adapter is not None:
            self._checkpoint = AdaptedCheckpoint(self._checkpoint, adapter, self.nemo_name)
        self._names = {self.nemo_name(name): name for name in self._checkpoint.tensors}
        self._constants = {WINDOW: hann_window(self.frontend), FILTERS: filters(self.frontend)[None]}
        self.tensors: Mapping[str, TensorInfo] = {
            name: self._checkpoint.tensors[stored] for name, stored in self._names.items()
        } | {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in self._constants.items()}
        self.files = (self._path, path, tokenizer / TOKENIZER_FILE, *self._checkpoint.files)

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor by NeMo's name."""
        return self._constants[name] if name in self._constants else self._checkpoint.read(self._names[name])

    @classmethod
    def nemo_name(cls, name: str) -> str:
        """Return NeMo's name of a tensor that transformers calls `name`."""
        for theirs, ours in cls.names.items():
            if match := re.match(theirs, name):
                return match.expand(ours) + name[match.end() :]
        return name

    @abstractmethod
    def read_settings(self) -> FastConformerSettings:
        """Return how to decode."""

    @abstractmethod
    def read_dims(self) -> FastConformerDims:
        """Return the network."""

    def _encoder_dims(self) -> dict[str, int]:
        """Return the sizes of the encoder by their names in FastConformerDims."""
        encoder = self._config.get("encoder_config")
        if not isinstance(encoder, dict):
            raise self._refused("encoder_config", encoder, "the encoder's settings")
        self._check_supported(encoder, _SUPPORTED_ENCODER)
        biases = [encoder.get(key, True) for key in ("attention_bias", "convolution_bias")]
        if biases[0] != biases[1]:
            raise self._refused("convolution_bias", biases[1], f"{biases[0]!r} as attention_bias")
        sizes = {ours: self._positive(encoder, theirs) for ours, theirs in _ENCODER_DIMS.items()}
        if sizes["d_model"] % sizes["n_heads"] or sizes["d_model"] % 2:
            raise self._refused("num_attention_heads", sizes["n_heads"], f"a divisor of {sizes['d_model']}")
        if sizes["conv_kernel"] % 2 == 0:
            raise self._refused("conv_kernel_size", sizes["conv_kernel"], "an odd number")
        return sizes | {
            "subsampling_factor": _SUPPORTED_ENCODER["subsampling_factor"][1],
            "use_bias": int(bool(biases[0])),
            "xscaling": int(bool(encoder.get("scale_input", True))),
        }

    def _check_supported(self, section: Mapping[str, Any], known: Mapping[str, tuple[Any, Any]]) -> None:
        """Refuse what the graphs do not compute; `known` has transformers' default and what is supported by key."""
        for key, (default, value) in known.items():
            if section.get(key, default) != value:
                raise self._refused(key, section[key], repr(value))

    def _n_vocab(self, blank_key: str) -> int:
        """Return the size of the vocabulary without the blank, which is its last token."""
        n_vocab = self._positive(self._config, "vocab_size") - 1
        if self._config.get(blank_key) != n_vocab:
            raise self._refused(blank_key, self._config.get(blank_key), f"vocab_size - 1, {n_vocab}")
        return n_vocab

    def _positive(self, section: Mapping[str, Any], key: str) -> int:
        value = section.get(key)
        if type(value) is not int or not 0 < value <= _LARGEST:
            raise self._refused(key, value, f"a number from 1 to {_LARGEST}")
        return value

    def _refused(self, key: str, found: object, supported: str) -> InputError:
        return InputError(
            f"{self._path}: {key}: found {found!r:.80}, supported is {supported}; give another checkpoint"
        )


def frontend_of(folder: Path, dims: FastConformerDims, extractor: str) -> tuple[Path, FastConformerFrontend]:
    """Return the front-end of transformers' class `extractor`, and the file that describes it.

    Raises
    ------
    InputError
        No such file, or one of another front-end.

    """
    path, config = read_feature_extractor(folder)
    names = {
        "sampling_rate": "sample_rate",
        "feature_size": "n_mels",
        "hop_length": "hop_length",
        "n_fft": "n_fft",
        "win_length": "win_length",
        "preemphasis": "preemphasis",
    }
    kind = config.get("feature_extractor_type")
    try:
        frontend = FastConformerFrontend(
            **{ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}
        )
    except ValidationError as error:
        raise InputError(f"{path}: expected a {extractor} ({error.errors()[0]['msg']})") from error
    if kind != extractor or frontend.n_mels != dims.n_mels or frontend.win_length > frontend.n_fft:
        raise InputError(
            f"{path}: expected a {extractor} with {dims.n_mels} mels, found {kind!r:.80} with "
            f"{frontend.n_mels} and a window of {frontend.win_length} in {frontend.n_fft}; the file is of another model"
        )
    return path, frontend


def hann_window(frontend: FastConformerFrontend) -> torch.Tensor:
    """Return NeMo's window: a symmetric Hann window, f32 [win_length]."""
    return torch.from_numpy(np.hanning(frontend.win_length)).float()


def filters(frontend: FastConformerFrontend) -> torch.Tensor:
    """Return NeMo's mel filter bank (librosa's default), f32 [n_mels, n_fft // 2 + 1]."""
    return torch.from_numpy(slaney_filters(frontend.sample_rate, frontend.n_fft, frontend.n_mels).T).float()


def _tokenizer(path: Path, n_vocab: int) -> bytes:
    try:
        data = path.read_bytes()
        known = Tokenizer.from_str(data.decode()).get_vocab_size()
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; get the whole repository, or its .nemo file") from error
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: expected a tokenizer of the tokenizers library ({error}); get it again") from error
    if known < n_vocab:
        raise InputError(f"{path}: expected at least {n_vocab} tokens, found {known}; it is of another model")
    return data
