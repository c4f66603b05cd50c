"""What a torch_npu wheel expects of CANN, read from its ELF files by nm and ldd."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterable
from pathlib import Path

# What torch_npu links and `import torch_npu` loads; torchair's libraries come with graph mode only.
LIBRARIES = ("lib/libtorch_npu.so", "lib/libnpu_profiler.so", "lib/libtensorpipe.so", "_C.*.so")


def needed_symbols(torch: Path, torch_npu: Path) -> list[str]:
    """Return the functions that torch_npu's libraries use and neither they, torch nor the system define.

    Symbols of the system's libraries carry a version (`memcpy@GLIBC_2.14`), but for some of the C library's; those of
    CANN do not.
    """
    system = ctypes.CDLL(None)
    libraries = _libraries(torch_npu)
    defined = _names([*libraries, *sorted((torch / "lib").glob("*.so*"))], "--defined-only")
    plain = {name for name in _names(libraries, "--undefined-only") if "@" not in name}
    return sorted(name for name in plain - defined if not name.startswith(("Py", "_Py")) and not hasattr(system, name))


def needed_libraries(torch: Path, torch_npu: Path) -> list[str]:
    """Return the shared libraries that torch_npu's are linked with and that neither torch nor the system has."""
    command = ["ldd", *_libraries(torch_npu)]
    environment = {"LD_LIBRARY_PATH": str(torch / "lib")}
    listed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return sorted({line.split()[0] for line in listed.splitlines() if line.endswith("=> not found")})


def defined_symbols(library: Path) -> set[str]:
    """Return the names that a shared library or an object file defines."""
    return _names([library], "--defined-only")


def _libraries(torch_npu: Path) -> list[Path]:
    return [path for pattern in LIBRARIES for path in sorted(torch_npu.glob(pattern))]


def _names(files: Iterable[Path], which: str) -> set[str]:
    """Return the names that nm lists, but for weak ones that nothing has to define."""
    found = set()
    for file in files:
        listed = subprocess.run(["nm", "--dynamic", which, file], check=True, capture_output=True, text=True).stdout
        rows = [line.split() for line in listed.splitlines()]
        found |= {row[-1] for row in rows if row[-2] not in {"w", "v"} or which == "--defined-only"}
    return found
