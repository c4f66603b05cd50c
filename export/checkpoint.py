"""Reads checkpoints one tensor at a time, without running anything that they contain."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch

from export.json_files import read_json
from export.safetensors_writer import StoredTensor, TensorInfo, stored_tensors
from runtime.errors import InputError

# File names of a checkpoint in order of preference; each may also be split, with `<name>.index.json` naming the parts.
CHECKPOINT_LAYOUTS = ("model.safetensors", "pytorch_model.bin")
# What else such a file is called; it counts where it is the only one.
_OTHER_NAMES = re.compile(r"(pytorch_)?model(\.(fp32|fp16|bf16))?\.(safetensors|bin|pth|pt)")
# Keys under which training code saves a network's tensors, beside those of the optimiser.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# What torch.compile puts into the names of tensors, and DataParallel before them.
_COMPILED, _PARALLEL = "_orig_mod", "module"
# torch.save writes a zip file; before 1.6 pickles, of which the first is a number (torch.serialization.MAGIC_NUMBER).
_ZIP, _PICKLES = b"PK\x03\x04", (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_LISTED = 4
# Of random weights.
SEED = 0


class Checkpoint(Protocol):
    """Named tensors, read one at a time."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Dtype and shape by name."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that were opened."""

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""


class SafetensorsCheckpoint:
    """One or several safetensors files.

    Tensors are read, not mapped: pages of a mapped file count as resident memory, read ones go with the tensor.
    """

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.files = files
        self._places: dict[str, tuple[Path, StoredTensor]] = {}
        for file in files:
            for name, tensor in _stored(file).items():
                if name in self._places:
                    raise InputError(f"{file}: holds {name}, as does {self._places[name][0].name}; get the files again")
                self._places[name] = (file, tensor)
        self.tensors: Mapping[str, TensorInfo] = {name: tensor for name, (_, tensor) in self._places.items()}

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""
        path, place = self._places[name]
        return read_stored(path, name, place)


class TorchCheckpoint:
    """One or several files of torch.save: mapped, and unpickled without running code.

    Files of torch before 1.6 cannot be mapped: their tensors are in memory. `wrapped` says whether a file held the
    tensors in a dictionary of their own, beside other things.
    """

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.files = files
        self.wrapped = False
        self._state: dict[str, torch.Tensor] = {}
        for file in files:
            loaded = load_pickle(file)
            state = _without_wrapper(loaded, file)
            self.wrapped |= state is not loaded
            for name, tensor in state.items():
                if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                    raise InputError(f"{file}: expected tensors by name, found {name!r}: {type(tensor).__name__}")
                self._state[name] = tensor
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in self._state.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""
        return self._state[name]


class RenamedCheckpoint:
    """Tensors of another checkpoint; `names` are those here to those there."""

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
        self.files = checkpoint.files
        self._checkpoint, self._names = checkpoint, names
        self.tensors: Mapping[str, TensorInfo] = {name: checkpoint.tensors[names[name]] for name in names}

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""
        return self._checkpoint.read(self._names[name])


class RandomCheckpoint:
    """Random tensors that depend on SEED and their name only.

    NumPy's generator, as torch's gives other numbers on CPUs with other vector instructions.

    Parameters
    ----------
    shapes : Mapping[str, tuple[int, ...]]
        The tensors.
    scale : Callable[[str, tuple[int, ...]], tuple[float, float]]
        Mean and standard deviation for a name and shape.

    """

    files: tuple[Path, ...] = ()

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], scale: Callable[[str, tuple[int, ...]], tuple[float, float]]
    ) -> None:
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(torch.float32, tuple(shape)) for name, shape in shapes.items()
        }
        self._scale = scale

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""
        shape = self.tensors[name].shape
        mean, std = self._scale(name, shape)
        digest = hashlib.sha256(f"{SEED}/{name}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
        values = generator.standard_normal(prod(shape), dtype=np.float32)
        values *= np.float32(std)
        values += np.float32(mean)
        return torch.from_numpy(values.reshape(shape))


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the checkpoint of a folder: safetensors or pytorch_model.bin, whole or split.

    Tensors have their plain names, without what training code puts around them, see `plain_names`.

    Raises
    ------
    InputError
        There is none, a part of it is missing or damaged, or it holds code.

    """
    checkpoint, usual = _open_layout(folder)
    names = plain_names(checkpoint.tensors, str(folder))
    wrapped = isinstance(checkpoint, TorchCheckpoint) and checkpoint.wrapped
    plain = usual and not wrapped and all(name == stored for name, stored in names.items())
    return checkpoint if plain else RenamedCheckpoint(checkpoint, names)


def is_plain(folder: Path) -> bool:
    """Return whether other software reads a folder's tensors, too: usual file, usual names, nothing around them."""
    return not isinstance(open_checkpoint(folder), RenamedCheckpoint)


def plain_names(stored: Iterable[str], where: str) -> dict[str, str]:
    """Return the names of a network's own tensors, each with the one that is stored.

    torch.compile puts `_orig_mod.` into them, DataParallel and DistributedDataParallel put `module.` before them.

    Raises
    ------
    InputError
        Two tensors have the same name then.

    """
    names: dict[str, str] = {}
    for name in stored:
        parts = [part for part in name.split(".") if part != _COMPILED]
        plain = ".".join(parts[1:] if parts[:1] == [_PARALLEL] else parts)
        if plain in names:
            raise InputError(
                f"{where}: holds {names[plain]} and {name}, which are one; give a checkpoint of one network"
            )
        names[plain] = name
    return names


def read_stored(path: Path, name: str, place: StoredTensor) -> torch.Tensor:
    """Return the tensor that lies at a place of a file; `name` is for errors.

    Raises
    ------
    InputError
        The file ends within it.

    """
    tensor = torch.empty(place.shape, dtype=place.dtype)
    if place.length:
        with path.open("rb", buffering=0) as file:
            file.seek(place.offset)
            buffer = tensor.reshape(-1).view(torch.uint8).numpy().data
            # One read returns at most 2 GiB.
            while buffer:
                count = file.readinto(buffer)
                if not count:
                    raise InputError(f"{path}: ends within {name}; the file is damaged, get it again")
                buffer = buffer[count:]
    return tensor


def shard_names(index: Path) -> dict[str, list[str]]:
    """Return the parts of a split checkpoint: file name to the tensors that the index says it holds.

    Raises
    ------
    InputError
        Not an index, or one that names a file outside its folder.

    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{index}: expected a weight_map of tensor names to files, found none; get it again")
    shards: dict[str, list[str]] = {}
    for tensor, file in weight_map.items():
        if PurePosixPath(file).name != file or file in {"", "..", "."}:
            raise InputError(f"{index}: {tensor}: expected a file of the same folder, found {file!r}; refused")
        shards.setdefault(file, []).append(tensor)
    return shards


def check_tensors(found: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare the tensors of a checkpoint with those of the network.

    Raises
    ------
    InputError
        Tensors are missing, unexpected, of another shape, or not floating point; each message names some.

    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise InputError(f"{where}: {_listing(missing)} missing; the checkpoint is partial or of another model")
    unexpected = [name for name in found if name not in expected]
    if unexpected:
        raise InputError(f"{where}: {_listing(unexpected)} unexpected; the checkpoint is of another model")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise InputError(
                f"{where}: {name}: expected shape {list(shape)}, found {list(found[name].shape)}; "
                "config.json and tensors are of different models"
            )
        if not found[name].dtype.is_floating_point:
            raise InputError(f"{where}: {name}: expected a floating point tensor, found {found[name].dtype}")


def _open_layout(folder: Path) -> tuple[SafetensorsCheckpoint | TorchCheckpoint, bool]:
    """Return the checkpoint of a folder, and whether its file has one of the usual names."""
    for name in CHECKPOINT_LAYOUTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _kind(name)((folder / name,)), True
        if index.is_file():
            return _open_split(index, _kind(name)), True
    names = sorted(path.name for path in folder.iterdir())
    others = [name for name in names if _OTHER_NAMES.fullmatch(name)]
    if len(others) == 1:
        return _kind(others[0])((folder / others[0],)), False
    found = ", ".join((others or names)[:_LISTED]) or "nothing"
    raise InputError(f"{folder}: expected {' or '.join(CHECKPOINT_LAYOUTS)}, found {found}; give a checkpoint's folder")


def _kind(name: str) -> type[SafetensorsCheckpoint | TorchCheckpoint]:
    return SafetensorsCheckpoint if name.endswith(".safetensors") else TorchCheckpoint


def _open_split(
    index: Path, kind: type[SafetensorsCheckpoint | TorchCheckpoint]
) -> SafetensorsCheckpoint | TorchCheckpoint:
    shards = shard_names(index)
    missing = [file for file in shards if not (index.parent / file).is_file()]
    if missing:
        raise InputError(f"{index}: {_listing(missing)} missing of {len(shards)} files; the checkpoint is partial")
    checkpoint = kind(tuple(index.parent / file for file in sorted(shards)))
    lost = [name for names in shards.values() for name in names if name not in checkpoint.tensors]
    if lost:
        raise InputError(f"{index}: {_listing(lost)} missing in the files it names; the checkpoint is partial")
    return checkpoint


def _stored(file: Path) -> dict[str, StoredTensor]:
    try:
        return stored_tensors(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


def load_pickle(file: Path) -> dict[Any, Any]:
    """Return the dictionary that torch.save wrote, its tensors mapped where torch can, without running code.

    Raises
    ------
    InputError
        Another file, a damaged one, or one that holds more than tensors.

    """
    try:
        with file.open("rb") as stream:
            head = stream.read(32)
        zipped, pickled = head.startswith(_ZIP), _PICKLES in head
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped) if zipped or pickled else None
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file}: holds more than tensors (code is refused); get the checkpoint as safetensors"
        ) from error
    except Exception as error:  # torch's readers raise what they meet in a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file}: cannot be opened as a torch checkpoint ({reason}); get it again") from error
    if state is None:
        raise InputError(f"{file}: expected a file that torch.save wrote, found another kind; get it again")
    if not isinstance(state, dict):
        raise InputError(f"{file}: expected tensors by name, found {type(state).__name__}; get another checkpoint")
    return state


def _without_wrapper(state: dict[Any, Any], file: Path) -> dict[Any, Any]:
    """Return the tensors of a dictionary that training code saved, or the dictionary itself."""
    found = [key for key in _WRAPPERS if isinstance(state.get(key), dict)]
    if len(found) > 1:
        raise InputError(f"{file}: holds {' and '.join(found)}; save the one that is to be exported alone")
    return state[found[0]] if found else state


def _listing(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
