"""Writes a model's parameters."""

from __future__ import annotations

from pathlib import Path

import torch

from export.family import FamilyModel
from export.safetensors_writer import TensorInfo, write_safetensors
from runtime.errors import InputError


def write_weights(model: FamilyModel, dtype: torch.dtype, path: Path) -> None:
    """Write all parameters in one dtype, but for those that stay float32, one in memory at a time.

    Raises
    ------
    InputError
        A value is not finite, or not any more in that dtype.

    """
    infos = {
        name: TensorInfo(torch.float32 if name in model.float32 else dtype, info.shape)
        for name, info in model.tensors.items()
    }

    def read(name: str) -> torch.Tensor:
        tensor = model.read(name)
        cast = tensor.to(infos[name].dtype)
        if not _is_finite(cast):
            reason = f"leaves the range of {cast.dtype}" if _is_finite(tensor) else "is not finite"
            raise InputError(f"checkpoint: {name} {reason}; export another precision, or get the checkpoint again")
        return cast

    write_safetensors(path, infos, read)


def _is_finite(tensor: torch.Tensor) -> bool:
    # torch.isfinite makes a copy of the tensor.
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) and torch.isfinite(high))
