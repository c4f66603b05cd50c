"""Writes and indexes safetensors files, one tensor in memory at a time.

`safetensors.torch.save_file` takes all tensors at once: for a model of 3 GB the whole model is then in memory. This
writer asks for one tensor after the other, so that the peak is the largest tensor. The format is described in the
README of huggingface/safetensors: eight bytes with the header's length, a JSON header, the tensors without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.errors import InputError

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
# The data starts at a multiple of this, as mapped weights are read by vector instructions.
_ALIGNMENT = 64


@dataclass(frozen=True)
class TensorInfo:
    """Dtype and shape of a tensor that is not in memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor(TensorInfo):
    """A tensor of a safetensors file; `offset` in bytes from the start of the file."""

    offset: int


def write_safetensors(path: Path, tensors: Mapping[str, TensorInfo], read: Callable[[str], torch.Tensor]) -> None:
    """Write a safetensors file; the same tensors give the same bytes.

    The order of the data depends on the tensors alone: larger element sizes first, so that every tensor is aligned
    to its element size, then by name.

    Parameters
    ----------
    path : Path
        The file, overwritten if it is there. After an error it is incomplete.
    tensors : Mapping[str, TensorInfo]
        Dtype and shape of every tensor.
    read : Callable[[str], torch.Tensor]
        Returns one tensor; called once for each name, in the order of the file.

    Raises
    ------
    InputError
        `read` returned another dtype or shape than `tensors` says.

    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    entries: dict[str, object] = {}
    begin = 0
    for name in order:
        info = tensors[name]
        end = begin + info.length
        entries[name] = {"dtype": _CODES[info.dtype], "shape": list(info.shape), "data_offsets": [begin, end]}
        begin = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name in order:
            file.write(_tensor_bytes(name, tensors[name], read(name)).data)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return where each tensor of a safetensors file lies, without reading the tensors.

    Raises
    ------
    InputError
        The file is not a safetensors file, or is cut off.

    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            # A file of another kind may ask for any length.
            entries = json.loads(file.read(min(length, size)))
        entries.pop("__metadata__", None)
        found = {
            name: StoredTensor(
                _DTYPES[entry["dtype"]], tuple(entry["shape"]), offset=8 + length + entry["data_offsets"][0]
            )
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: expected a safetensors file, found something else ({error}); get it again"
        ) from error
    end = max((tensor.offset + tensor.length for tensor in found.values()), default=8 + length)
    if end != size:
        raise InputError(f"{path}: expected {end} bytes, found {size}; the file is damaged, get it again")
    return found


def _tensor_bytes(name: str, info: TensorInfo, tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return the little-endian bytes of a tensor, without a copy where it is contiguous."""
    if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
        raise InputError(
            f"tensor {name}: expected {info.dtype} {info.shape}, found {tensor.dtype} {tuple(tensor.shape)}; "
            "the checkpoint is damaged, get it again"
        )
    flat: NDArray[np.uint8] = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat
