"""Reads a Cnn8Rnn checkpoint in the layout of the hub (wsntxxn/cnn8rnn-audioset-sed), and folds its normalisations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from pydantic import ValidationError

from export.checkpoint import check_tensors, open_checkpoint
from export.families.cnn8rnn.graphs import Constants
from export.families.cnn8rnn.modules import Cnn8Rnn
from export.json_files import read_json
from export.safetensors_writer import TensorInfo
from runtime.errors import InputError
from runtime.families.cnn8rnn.classes import read_classes
from runtime.families.cnn8rnn.settings import Cnn8RnnDims, Cnn8RnnFrontend, Cnn8RnnSettings

# Two buffers of torchaudio's MelSpectrogram.
WINDOW = "melspec_extractor.spectrogram.window"
FILTERS = "melspec_extractor.mel_scale.fb"
# torch.nn.BatchNorm2d's default, which the network's authors keep.
_EPSILON = 1e-5
_STATISTICS = ("weight", "bias", "running_mean", "running_var")
# Counts training steps; of no use.
_COUNTER = ".num_batches_tracked"
# torch.nn.GRU's names for its one layer, forward and backward.
_DIRECTIONS = ("_l0", "_l0_reverse")
# The tensor and the axis that tell each of the dims.
_PLACES = {
    "n_mels": ("bn0.weight", 0),
    "n_channels_1": ("conv_block1.conv1.weight", 0),
    "n_channels_2": ("conv_block2.conv1.weight", 0),
    "n_channels_3": ("conv_block3.conv1.weight", 0),
    "n_channels_4": ("conv_block4.conv1.weight", 0),
    "n_fc": ("fc1.weight", 0),
    "n_hidden": ("rnn.weight_hh_l0", 1),
    "n_classes": ("fc_audioset.weight", 0),
}
# Four blocks halve the mels.
_LEAST_MELS = 16


class Tensors(Protocol):
    """The tensors of a checkpoint, or random ones, under the checkpoint's names."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Dtype and shape by name."""

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""


class Cnn8RnnCheckpoint:
    """A checkpoint's tensors, checked against each other, config.json and classes.txt.

    `tensors` and `read` are the checkpoint's; `labels` its classes in the order of the logits.

    Raises
    ------
    InputError
        The folder holds no complete Cnn8Rnn checkpoint; the message says what is wrong with it.

    """

    notes: tuple[str, ...] = ()
    settings = Cnn8RnnSettings()

    def __init__(self, folder: Path) -> None:
        self._checkpoint = open_checkpoint(folder)
        self.tensors: Mapping[str, TensorInfo] = {
            name: info for name, info in self._checkpoint.tensors.items() if not name.endswith(_COUNTER)
        }
        self.dims = _dims(self.tensors, folder)
        config = folder / "config.json"
        self.frontend = _frontend(config, self.dims, self.tensors)
        check_tensors(self.tensors, tensor_shapes(self.dims, self.frontend), str(folder))
        stated = read_json(config).get("classes_num", self.dims.n_classes)
        if stated != self.dims.n_classes:
            raise InputError(
                f"{config}: expected classes_num {self.dims.n_classes}, as fc_audioset has, found {stated!r}; "
                "they are of different models"
            )
        classes = folder / self.settings.classes_file
        self.labels = read_classes(classes, self.dims.n_classes)
        self._check_values(folder)
        self.files = (config, classes, *self._checkpoint.files)

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor of the checkpoint."""
        return self._checkpoint.read(name)

    def _check_values(self, folder: Path) -> None:
        """Check the tensors that become no weight of their own; the pipeline looks at the weights."""
        for name in self.tensors:
            if not name.endswith("running_var") and not name.startswith(("bn0.", "melspec_extractor.")):
                continue
            values = self.read(name)
            if not torch.isfinite(values).all():
                raise InputError(f"{folder}: {name} is not finite; the checkpoint is damaged, get it again")
            if name.endswith(("running_var", FILTERS)) and (values.min() < 0 or not values.any()):
                raise InputError(
                    f"{folder}: {name}: expected values from 0 on, found {values.min():g} to {values.max():g}; "
                    "the checkpoint is damaged, get it again"
                )


def tensor_shapes(dims: Cnn8RnnDims, frontend: Cnn8RnnFrontend) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a checkpoint, but for the counters of training steps."""
    shapes: dict[str, tuple[int, ...]] = {
        WINDOW: (frontend.n_fft,),
        FILTERS: (frontend.n_fft // 2 + 1, dims.n_mels),
        **{f"bn0.{kind}": (dims.n_mels,) for kind in _STATISTICS},
    }
    for direction in _DIRECTIONS:
        for kind, width in (("ih", (dims.n_fc,)), ("hh", (dims.n_hidden,))):
            shapes[f"rnn.weight_{kind}{direction}"] = (3 * dims.n_hidden, *width)
            shapes[f"rnn.bias_{kind}{direction}"] = (3 * dims.n_hidden,)
    for name, shape in parameter_shapes(dims).items():
        layer, _, kind = name.rpartition(".")
        if layer == "rnn":
            continue
        if not layer.startswith("conv_block"):
            shapes[name] = shape
        elif kind == "weight":
            shapes[name] = shape
            shapes |= {f"{_norm_of(layer)}.{kind}": shape[:1] for kind in _STATISTICS}
    return shapes


def parameter_shapes(dims: Cnn8RnnDims) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter of our modules."""
    with torch.device("meta"):
        model = Cnn8Rnn(dims)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def folded(source: Tensors, name: str) -> torch.Tensor:
    """Return one parameter of our modules: of a convolution with the normalisation behind it, computed in float64.

    Those of the GRU are both directions', weight_hh transposed.
    """
    layer, _, kind = name.rpartition(".")
    if layer == "rnn":
        both = [source.read(f"{name}{direction}") for direction in _DIRECTIONS]
        if kind == "weight_hh":
            return torch.stack(both).transpose(1, 2).contiguous()
        return torch.stack(both).unsqueeze(1) if kind == "bias_hh" else torch.cat(both)
    if not layer.startswith("conv_block"):
        return source.read(name)
    scale, shift = _scale_and_shift(source, _norm_of(layer))
    if kind == "bias":
        return shift.float()
    return (source.read(name).double() * scale[:, None, None, None]).float()


def constants(source: Tensors) -> Constants:
    """Return the parts of a checkpoint that the graphs hold in float32."""
    scale, shift = _scale_and_shift(source, "bn0")
    return Constants(
        window=source.read(WINDOW).float(),
        filters=source.read(FILTERS).float(),
        scale=scale.float(),
        shift=shift.float(),
    )


def _norm_of(layer: str) -> str:
    """Return the normalisation behind a convolution: conv_block1.conv2 has conv_block1.bn2."""
    return layer.replace(".conv", ".bn")


def _scale_and_shift(source: Tensors, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch normalisation as x * scale + shift, in float64: a variance may be as small as 4e-10."""
    weight, bias, mean, variance = (source.read(f"{norm}.{kind}").double() for kind in _STATISTICS)
    scale = weight / torch.sqrt(variance + _EPSILON)
    return scale, bias - mean * scale


def _dims(tensors: Mapping[str, TensorInfo], folder: Path) -> Cnn8RnnDims:
    """Return the network that the tensors' shapes describe."""
    sizes: dict[str, int] = {}
    for dim, (name, axis) in _PLACES.items():
        shape = tensors[name].shape if name in tensors else ()
        if len(shape) <= axis or shape[axis] < 1:
            found = f"found shape {list(shape)}" if name in tensors else "found none"
            raise InputError(
                f"{folder}: expected a tensor {name} of a Cnn8Rnn, {found}; "
                "the checkpoint is partial or of another model"
            )
        sizes[dim] = shape[axis]
    if sizes["n_mels"] < _LEAST_MELS:
        raise InputError(f"{folder}: expected at least {_LEAST_MELS} mels, found {sizes['n_mels']}; not supported")
    return Cnn8RnnDims(**sizes)


def _frontend(path: Path, dims: Cnn8RnnDims, tensors: Mapping[str, TensorInfo]) -> Cnn8RnnFrontend:
    """Return what config.json says of the front-end; the hub's says nothing and means the defaults.

    Raises
    ------
    InputError
        It does not fit the tensors, or makes no front-end.

    """
    config = read_json(path)
    window = tensors[WINDOW].shape if WINDOW in tensors else ()
    of_tensors = {"n_mels": dims.n_mels} | ({"n_fft": window[0]} if window else {})
    stated = {key: config[key] for key in Cnn8RnnFrontend.model_fields if key in config}
    try:
        frontend = Cnn8RnnFrontend(**of_tensors | stated)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {first['loc'][0]}: {first['msg']}, found {first['input']!r}") from error
    for key, size in of_tensors.items():
        if stated.get(key, size) != size:
            raise InputError(
                f"{path}: expected {key} {size}, as the tensors have, found {stated[key]}; they are of different models"
            )
    shortest = (Cnn8RnnSettings().frames_per_score - 1) * frontend.hop_length
    if shortest <= frontend.n_fft // 2:
        raise InputError(
            f"{path}: expected n_fft below {2 * shortest} for a hop_length of {frontend.hop_length}, "
            f"found {frontend.n_fft}; not supported"
        )
    return frontend
