"""The host's memory: what is free, and what Python is done with goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes that programs may take now, as Linux estimates it; None elsewhere."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None


def release_memory() -> None:
    """Give back what was freed: glibc keeps it otherwise, gigabytes after a large network's session."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # glibc's, which the wheels of torch and ONNX Runtime need
