"""Memory that Python is done with goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys


def release_memory() -> None:
    """Give back what was freed: glibc keeps it otherwise, gigabytes after a large network's session."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # glibc's, which the wheels of torch and ONNX Runtime need
