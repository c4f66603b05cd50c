"""A stand-in for torch_npu: a device type npu that computes with the CPU's kernels and keeps a record of what it did.

Importing it builds the device's C++ part on first use and installs it. What it is and what is to go wrong stand in
environment variables and a control file, see `torch_npu.simulator`.
"""

import os

# As the real package does: without this `import torch` would come back here.
_autoload_before = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1")
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import torch  # noqa: E402

from torch_npu import simulator  # noqa: E402
from torch_npu.version import __version__ as __version__  # noqa: E402

torch.utils.rename_privateuse1_backend("npu")
simulator.install()

from torch_npu import npu as npu  # noqa: E402

torch._register_device_module("npu", npu)
torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)


def _autoload() -> None:
    """Called by `import torch`, which thereby has imported this package."""
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = _autoload_before


_autoload()
