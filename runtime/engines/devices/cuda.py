"""torch on CUDA."""

from __future__ import annotations

import os

import torch

from runtime.engines.base import EngineSettings
from runtime.engines.devices.accelerator import Accelerator
from runtime.engines.probe import DeviceFacts
from runtime.errors import NoDeviceError

DETERMINISTIC_CUBLAS = ":4096:8"


class CudaDevice(Accelerator):
    """A CUDA device.

    Parameters
    ----------
    name : str
        `cuda:N`.
    settings : EngineSettings
        Precision and determinism.

    Raises
    ------
    NoDeviceError
        This torch is built for the CPU only, or sees no such device.

    """

    def __init__(self, name: str, settings: EngineSettings) -> None:
        if torch.version.cuda is None:
            raise NoDeviceError(
                f"{name}: torch {torch.__version__} is built without CUDA; install a build of torch with it, or use cpu"
            )
        count = torch.cuda.device_count()
        if int(name.partition(":")[2]) >= count:
            raise NoDeviceError(f"{name}: torch {torch.__version__} sees {count} CUDA devices; check nvidia-smi")
        flags = _precision_flags(default=settings.default_precision)
        flags["deterministic"] = str(settings.deterministic).lower()
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", DETERMINISTIC_CUBLAS)
            torch.use_deterministic_algorithms(mode=True)
        versions = {
            "torch": str(torch.__version__),
            "cuda": str(torch.version.cuda),
            "soc": torch.cuda.get_device_name(name),
        }
        super().__init__(name, DeviceFacts(flags=flags, versions=versions), "CUDAGraph")

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy on the device, by way of pinned memory: the host does not wait for it."""
        return tensor.pin_memory().to(self.name, non_blocking=True)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy in pinned memory, where the device writes at full speed; waits for the device."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(self.name).synchronize()
        return host


def _precision_flags(*, default: bool) -> dict[str, str]:
    """Switch TF32 off unless `default`; return what is in force."""
    kinds = {
        "matmul": torch.backends.cuda.matmul,
        "conv": torch.backends.cudnn.conv,  # type: ignore[attr-defined]
        "rnn": torch.backends.cudnn.rnn,
    }
    for kind in kinds.values():
        if not default:
            kind.fp32_precision = "ieee"
    return {f"{name}.fp32_precision": str(kind.fp32_precision) for name, kind in kinds.items()}
