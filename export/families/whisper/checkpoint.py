"""Reads a Whisper checkpoint in the layout of the hub: what network it holds, its front-end, tokens and rules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from export.checkpoint import Checkpoint, check_tensors, open_checkpoint, read_feature_extractor, read_json
from export.families.whisper.modules import Whisper
from export.safetensors_writer import TensorInfo
from runtime.errors import InputError
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend, WhisperSettings

# The vocabulary projection. Some checkpoints hold it beside the token embedding that it is tied to.
_TIED = "proj_out.weight"
_EMBEDDING = "decoder.embed_tokens.weight"
# openai/whisper's English-only models are those with this vocabulary.
_ENGLISH_VOCABULARY = 51864
_LARGEST = 1 << 20
_TASKS = ("transcribe", "translate")


class WhisperCheckpoint:
    """A checkpoint's tensors under the names of our modules, each checked against the network.

    Raises
    ------
    InputError
        The folder holds no complete Whisper checkpoint; the message says what is wrong with it.

    """

    def __init__(self, folder: Path) -> None:
        self.dims = whisper_dims(folder / "config.json")
        self.frontend = whisper_frontend(folder, self.dims)
        self.tokenizer_json = _tokenizer_json(folder / "tokenizer.json")
        self.settings = whisper_settings(folder, self.dims, Tokenizer.from_str(self.tokenizer_json.decode()))
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
        side = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json")
        read = [folder / name for name in (*side, "tokenizer.json")]
        self.files = (*(file for file in read if file.is_file()), *self._checkpoint.files)

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

    Raises
    ------
    InputError
        No such file, or a front-end that does not fit the network.

    """
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


def whisper_settings(folder: Path, dims: WhisperDims, tokenizer: Tokenizer) -> WhisperSettings:
    """Return a checkpoint's special tokens and decoding rules.

    From generation_config.json; what it lacks (older checkpoints have less) from config.json and the tokenizer.
    The no-speech token is the one before <|notimestamps|>, as transformers has it.

    Raises
    ------
    InputError
        A token is neither in the files nor in the tokenizer, or outside the vocabulary.

    """
    path = folder / "generation_config.json"
    config = read_json(folder / "config.json")
    if path.is_file():
        config |= {key: value for key, value in read_json(path).items() if value is not None}

    def token(key: str | None, text: str) -> int:
        found = config.get(key) if key else None
        found = tokenizer.token_to_id(text) if found is None else found
        if not isinstance(found, int) or not 0 <= found < dims.n_vocab:
            raise InputError(f"{folder}: expected a token {text} below {dims.n_vocab}, found {found!r}")
        return found

    sot = token("decoder_start_token_id", "<|startoftranscript|>")
    no_timestamps = token("no_timestamps_token_id", "<|notimestamps|>")
    languages: dict[str, int] = {}
    tasks: dict[str, int] = {}
    try:
        if config.get("is_multilingual", dims.n_vocab != _ENGLISH_VOCABULARY):
            tasks = config.get("task_to_id") or {name: token(None, f"<|{name}|>") for name in _TASKS}
            between = range(sot + 1, min(tasks.values()))
            by_token = config.get("lang_to_id") or {tokenizer.id_to_token(number): number for number in between}
            languages = {name.strip("<|>"): number for name, number in by_token.items()}
        settings = WhisperSettings(
            sot=sot,
            eot=token("eos_token_id", "<|endoftext|>"),
            sot_prev=token("prev_sot_token_id", "<|startofprev|>"),
            no_speech=no_timestamps - 1,
            no_timestamps=no_timestamps,
            timestamp_begin=no_timestamps + 1,
            languages=languages,
            tasks=tasks,
            suppress_tokens=tuple(config.get("suppress_tokens") or ()),
            begin_suppress_tokens=tuple(config.get("begin_suppress_tokens") or ()),
            max_initial_timestamp_index=config.get("max_initial_timestamp_index"),
            max_length=min(config.get("max_length") or dims.n_text_ctx, dims.n_text_ctx),
        )
    except (ValidationError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: expected Whisper's generation settings ({str(error).splitlines()[0]})") from error
    _check_settings(settings, dims, folder)
    return settings


def _check_settings(settings: WhisperSettings, dims: WhisperDims, folder: Path) -> None:
    numbers = (
        *settings.languages.values(),
        *settings.tasks.values(),
        *settings.suppress_tokens,
        *settings.begin_suppress_tokens,
        settings.timestamp_begin,
    )
    outside = [number for number in numbers if not 0 <= number < dims.n_vocab]
    if outside:
        raise InputError(
            f"{folder}: expected token ids below the vocabulary's {dims.n_vocab}, found {outside[0]}; "
            "generation_config.json is of another model"
        )


def _tokenizer_json(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        Tokenizer.from_str(data.decode())
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: not found; write it with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        ) from error
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: expected a tokenizer of the tokenizers library ({error}); get it again") from error
    return data
