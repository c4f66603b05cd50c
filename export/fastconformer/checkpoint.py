"""A FastConformer checkpoint under the names of our modules, each tensor checked against the network."""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from sentencepiece import SentencePieceProcessor
from torch import nn
from typing_extensions import Self

from export.checkpoint import check_tensors
from export.fastconformer.modules import parameter_shapes
from export.fastconformer.nemo_config import FastConformerConfig
from export.fastconformer.transformers_folder import FILTERS, WINDOW, FastConformerFolder
from export.nemo import NemoArchive
from export.safetensors_writer import TensorInfo
from export.weights import Weights
from runtime.errors import InputError
from runtime.fastconformer.settings import FastConformerDims, FastConformerFrontend, FastConformerSettings

# torch.nn.BatchNorm1d's default, which NeMo and transformers keep.
_EPSILON = 1e-5
_DEPTHWISE = re.compile(r"(?P<conv>.*\.conv)\.depthwise_conv\.(?P<kind>weight|bias)")
_POINTWISE = re.compile(r".*\.conv\.pointwise_conv[12]\.weight")
# Counters of training steps.
_COUNTERS = re.compile(r".*\.num_batches_tracked")


class Tensors(Protocol):
    """Tensors by NeMo's names."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Type and shape of each."""

    def read(self, name: str) -> torch.Tensor:
        """Return one."""


class Described(Protocol):
    """What a checkpoint says of itself."""

    @property
    def dims(self) -> FastConformerDims:
        """The network."""

    @property
    def frontend(self) -> FastConformerFrontend:
        """Its features."""

    @property
    def settings(self) -> FastConformerSettings:
        """How to decode."""


class FastConformerCheckpoint(ABC):
    """A checkpoint's tensors under the names of our modules; the family's random weights have the same attributes.

    Parameters
    ----------
    stored : Tensors
        The tensors under NeMo's names.
    said : Described
        What the checkpoint says of its network.
    tokenizer : bytes
        The file that `settings.tokenizer_file` names.
    files : tuple[Path, ...]
        Those that were read.
    where : str
        The checkpoint, for errors.
    notes : tuple[str, ...]
        What it states that the artifact does otherwise, a line each.

    Attributes
    ----------
    tensors : Mapping[str, TensorInfo]
        The parameters of the family's network, all float32.
    window, filters : torch.Tensor
        Of the front-end: f32 [win_length], f32 [n_mels, n_fft // 2 + 1].

    Raises
    ------
    InputError
        A tensor is missing, unexpected, or of another shape than the configuration says.

    """

    # How the family reads a model_config.yaml and a folder of transformers, and its network by the sizes.
    config_type: type[FastConformerConfig]
    folder_type: type[FastConformerFolder]
    network: Callable[[Any], nn.Module]

    def __init__(
        self,
        stored: Tensors,
        said: Described,
        *,
        tokenizer: bytes,
        files: tuple[Path, ...],
        where: str,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.dims, self.frontend, self.settings = said.dims, said.frontend, said.settings
        self.tokenizer, self.files, self.notes = tokenizer, files, notes
        self.stored, self._where = stored, where
        found = {name: info for name, info in stored.tensors.items() if not _COUNTERS.fullmatch(name)}
        # Only now: the number of layers that a configuration states may be any.
        if self.n_layers > len(found):
            raise InputError(f"{where}: its configuration states more layers than it has tensors; get it again")
        shapes = parameter_shapes(lambda: type(self).network(self.dims))
        constants = {
            WINDOW: (self.frontend.win_length,),
            FILTERS: (1, self.frontend.n_mels, self.frontend.n_fft // 2 + 1),
        }
        parts = (self.stored_as(name, shape) for name, shape in shapes.items())
        check_tensors(found, constants | {name: shape for part in parts for name, shape in part.items()}, where)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(torch.float32, shape) for name, shape in shapes.items()
        }
        self.window = self._constant(WINDOW)
        self.filters = self._constant(FILTERS)[0]

    @property
    def n_layers(self) -> int:
        """Layers of the network, each of which has tensors of its own."""
        return self.dims.n_layers

    @classmethod
    def from_nemo(cls, path: Path) -> Self:
        """Open a .nemo file."""
        archive = NemoArchive(path)
        config = cls.config_type(archive.config, str(path))
        tokenizer = archive.read(config.tokenizer_member)
        _check_sentencepiece(tokenizer, config.dims.n_vocab, f"{path}: {config.tokenizer_member}")
        return cls(
            _Head(archive.checkpoint(), config.name_of),
            config,
            tokenizer=tokenizer,
            files=(path,),
            where=str(path),
            notes=config.notes,
        )

    @classmethod
    def from_transformers(cls, path: Path, *, tokenizer: Path | None = None, adapter: Path | None = None) -> Self:
        """Open a folder in transformers' layout, with another folder's tokenizer and a LoRA adapter where given."""
        folder = cls.folder_type(path, tokenizer=tokenizer or path, adapter=adapter)
        return cls(folder, folder, tokenizer=folder.tokenizer, files=folder.files, where=str(path))

    @classmethod
    def open(cls, weights: Weights) -> Self:
        """Open a checkpoint: a .nemo file, or a folder in transformers' layout.

        Raises
        ------
        InputError
            A damaged or partial checkpoint, one of a network that is not supported, or a .nemo file with an adapter or
            a tokenizer beside it.

        """
        path = weights.path
        assert path is not None
        if not path.is_file():
            return cls.from_transformers(path, tokenizer=weights.tokenizer, adapter=weights.adapter)
        if weights.adapter is not None:
            raise InputError(
                f"{weights.adapter}: a PEFT adapter, and peft adapts no .nemo file as {path.name} is; give the "
                "base in transformers' layout"
            )
        if weights.tokenizer is not None:
            raise InputError(
                f"{weights.tokenizer}: a tokenizer, and {path.name} has one of its own; give the .nemo file alone"
            )
        return cls.from_nemo(path)

    def stored_as(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of the tensors that hold a parameter, under NeMo's names."""
        if (match := _DEPTHWISE.fullmatch(name)) and match["kind"] == "bias":
            norm = f"{match['conv']}.batch_norm"
            parts = {f"{norm}.{part}": shape for part in ("weight", "bias", "running_mean", "running_var")}
            return parts | ({name: shape} if self.dims.use_bias else {})
        return {name: (*shape, 1) if _POINTWISE.fullmatch(name) else shape}

    def read(self, name: str) -> torch.Tensor:
        """Return one parameter, float32.

        The convolution module's normalisation is folded into its depthwise convolution, its pointwise convolutions are
        linears.
        """
        if match := _DEPTHWISE.fullmatch(name):
            return self._folded(match["conv"], match["kind"])
        tensor = self._float(name)
        return tensor[:, :, 0] if _POINTWISE.fullmatch(name) else tensor

    def _folded(self, conv: str, kind: str) -> torch.Tensor:
        """Return weight or bias of a depthwise convolution followed by its BatchNorm, in evaluation."""
        norm = f"{conv}.batch_norm"
        variance = self._float(f"{norm}.running_var")
        if not torch.isfinite(variance).all() or variance.min() < 0:
            raise InputError(f"{self._where}: {norm}.running_var: expected variances from 0 on; it is damaged")
        scale = self._float(f"{norm}.weight") / torch.sqrt(variance + _EPSILON)
        if kind == "weight":
            return self._float(f"{conv}.depthwise_conv.weight") * scale[:, None, None]
        shift = -self._float(f"{norm}.running_mean")
        if self.dims.use_bias:
            shift = shift + self._float(f"{conv}.depthwise_conv.bias")
        return shift * scale + self._float(f"{norm}.bias")

    def _float(self, name: str) -> torch.Tensor:
        return self.stored.read(name).float()

    def _constant(self, name: str) -> torch.Tensor:
        values = self._float(name)
        if not torch.isfinite(values).all() or not values.any():
            raise InputError(f"{self._where}: {name}: expected finite values, not all 0; the checkpoint is damaged")
        return values


class _Head:
    """The tensors of encoder and one head; `name_of` is FastConformerConfig's."""

    def __init__(self, stored: Tensors, name_of: Callable[[str], str | None]) -> None:
        self._stored = stored
        self._names = {name: theirs for theirs in stored.tensors if (name := name_of(theirs)) is not None}
        self.tensors = {name: stored.tensors[theirs] for name, theirs in self._names.items()}

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""
        return self._stored.read(self._names[name])


def _check_sentencepiece(model: bytes, n_vocab: int, where: str) -> None:
    try:
        found = SentencePieceProcessor(model_proto=model).get_piece_size()
    except Exception as error:  # the library raises what it likes
        raise InputError(f"{where}: expected a SentencePiece model, cannot open it; get the file again") from error
    if found != n_vocab:
        raise InputError(f"{where}: expected {n_vocab} pieces, found {found}; the file is damaged, get it again")
