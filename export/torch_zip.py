"""Reads the tensors of a file that torch.save wrote, where it lies: also inside another file."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from export.safetensors_writer import TensorInfo
from runtime.errors import InputError

# The pickle with the tensors' names; a large network's is under 1 MiB.
_PICKLE_LIMIT = 64 << 20


class TorchZipCheckpoint:
    """Tensors of a torch.save file, each read from its place when it is asked for.

    The file may be any seekable stream, so that a checkpoint inside an archive needs no copy, on disk or in memory.
    torch.load itself unpickles (weights_only) under fake tensors, which have no data but know where it lies. The
    checksums are those of the zip file, checked once, as nothing reads the tensors' records through it later.

    Parameters
    ----------
    stream : BinaryIO
        The file; stays open.
    path : Path
        Named in errors, and as the file that was read.

    Raises
    ------
    InputError
        Not such a file, a damaged one, or one that holds code.

    """

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self.files = (path,)
        self._path, self._stream = path, stream
        self._size = stream.seek(0, 2)
        self._check_records()
        self._state = self._fakes()
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in self._state.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""
        info = self.tensors[name]
        tensor = torch.empty(info.shape, dtype=info.dtype)
        if not info.length:
            return tensor
        self._stream.seek(_place(self._state[name]))
        buffer = tensor.reshape(-1).view(torch.uint8).numpy().data
        # One read returns at most 2 GiB.
        while buffer:
            count = self._stream.readinto(buffer)  # type: ignore[attr-defined]
            if not count:
                raise InputError(f"{self._path}: ends within {name}; the file is damaged, get it again")
            buffer = buffer[count:]
        return tensor

    def _check_records(self) -> None:
        try:
            with zipfile.ZipFile(self._stream) as records:
                for record in records.infolist():
                    if record.compress_type != zipfile.ZIP_STORED:
                        raise InputError(f"{self._path}: {record.filename} is compressed, torch never does; refused")
                    if record.filename.endswith(".pkl") and record.file_size > _PICKLE_LIMIT:
                        raise InputError(
                            f"{self._path}: {record.filename}: expected at most {_PICKLE_LIMIT} bytes, "
                            f"found {record.file_size}; refused"
                        )
                damaged = records.testzip()
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
            raise InputError(
                f"{self._path}: expected weights that torch.save wrote, cannot read them ({_reason(error)}); "
                "the file is damaged or older than torch 1.6, get it again"
            ) from error
        if damaged is not None:
            raise InputError(f"{self._path}: {damaged} does not match its checksum; the file is damaged, get it again")

    def _fakes(self) -> dict[str, torch.Tensor]:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self._stream.seek(0)
        try:
            with FakeTensorMode():
                state: Any = torch.load(self._stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise InputError(f"{self._path}: its weights hold more than tensors (code is refused)") from error
        except Exception as error:  # torch's readers raise what they meet in a damaged file
            raise InputError(
                f"{self._path}: cannot be opened as a torch checkpoint ({_reason(error)}); get it again"
            ) from error
        if not isinstance(state, dict):
            raise InputError(f"{self._path}: expected tensors by name, found {type(state).__name__}")
        for name, tensor in state.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise InputError(f"{self._path}: expected tensors by name, found {type(tensor).__name__}")
            self._check_place(name, tensor)
        return state

    def _check_place(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.layout is not torch.strided or tensor.untyped_storage()._checkpoint_offset is None:  # noqa: SLF001
            raise InputError(f"{self._path}: {name}: expected a plain tensor, found {tensor.layout}; not supported")
        if not tensor.is_contiguous():
            raise InputError(f"{self._path}: {name} is stored transposed or with gaps; save it contiguously")
        within = tensor.storage_offset() * tensor.dtype.itemsize + tensor.nbytes <= tensor.untyped_storage().nbytes()
        if not within or _place(tensor) + tensor.nbytes > self._size:
            raise InputError(f"{self._path}: {name} lies outside of its record; the file is damaged, get it again")


def _place(tensor: torch.Tensor) -> int:
    """Return where a tensor that was loaded under fake tensors begins, in bytes."""
    record = tensor.untyped_storage()._checkpoint_offset  # noqa: SLF001 - torch's notes on serialization describe it
    return int(record or 0) + int(tensor.storage_offset()) * tensor.dtype.itemsize


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
