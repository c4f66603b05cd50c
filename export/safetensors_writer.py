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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.bounded_json import MAX_HEADER_BYTES, MAX_HEADER_VALUES, load_json
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
_SIZE_LIMIT = 2**63


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
        The file is not a safetensors file, is cut off, or its tensors do not lie one after the other as they must.

    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # A file of another kind may ask for any length.
        header = file.read(length) if 8 + length <= size and length <= MAX_HEADER_BYTES else b""
    try:
        entries = load_json(header, MAX_HEADER_VALUES)
        entries.pop("__metadata__", None)
        found = {name: _stored_tensor(name, entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: expected a safetensors file, found something else ({str(error)[:200]}); get it again"
        ) from error
    end = 8 + length
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].offset, item[1].length)):
        if tensor.offset != end:
            raise InputError(
                f"{path}: tensor {name[:100]!r}: expected byte {end}, found {tensor.offset}; the file is damaged, "
                "get it again"
            )
        end += tensor.length
    if end != size:
        raise InputError(f"{path}: expected {end} bytes, found {size}; the file is damaged, get it again")
    return found


def _stored_tensor(name: str, entry: Mapping[str, Any], data: int) -> StoredTensor:
    """Return a tensor of a header; `data` is where the tensors begin.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError
        The entry is none.

    """
    dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    # bool is an int, and JSON has fractions.
    if not isinstance(shape, list) or any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError(f"tensor {name[:100]!r} of shape {shape!r:.100} at {begin!r:.20} to {end!r:.20}")
    # Of an empty tensor torch multiplies the other sizes, too.
    if prod(filter(None, shape)) * dtype.itemsize >= _SIZE_LIMIT:
        raise ValueError(f"tensor {name[:100]!r} of shape {shape!r:.100}")
    tensor = StoredTensor(dtype, tuple(shape), offset=data + begin)
    if end - begin != tensor.length:
        raise ValueError(f"tensor {name[:100]!r} of {tensor.length} bytes at {begin} to {end}")
    return tensor


def _tensor_bytes(name: str, info: TensorInfo, tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return the little-endian bytes of a tensor, without a copy where it is contiguous."""
    if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
        raise InputError(
            f"tensor {name}: expected {info.dtype} {info.shape}, found {tensor.dtype} {tuple(tensor.shape)}; "
            "the checkpoint is damaged, get it again"
        )
    flat: NDArray[np.uint8] = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat
