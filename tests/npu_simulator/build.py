"""Builds the simulated device's C++ part on first use.

The result is kept in the checkout's .cache, under a hash of the sources and of the versions of torch and Python.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

NAME = "npu_simulator_core"
SOURCES = sorted(Path(__file__).parent.glob("csrc/*"))
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "npu_simulator"


def built_library() -> Path:
    """Return the library's path; compiles it where it is not there yet, which takes a minute or two.

    Raises
    ------
    RuntimeError
        The compiler failed; the message has its output.

    """
    key = hashlib.sha256(f"{version('torch')} {sys.version}".encode())
    for source in SOURCES:
        key.update(source.name.encode() + source.read_bytes())
    folder = CACHE / key.hexdigest()[:16]
    done = folder / "done"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "build.lock"):
        if not done.exists():
            # In a process of its own: this one may be half-way through `import torch`.
            environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
            command = [sys.executable, __file__, str(folder)]
            built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if built.returncode:
                raise RuntimeError(f"the simulated npu could not be built:\n{built.stdout}{built.stderr}")
            done.touch()
    return folder / f"{NAME}.so"


def _compile(folder: Path) -> None:
    from torch.utils.cpp_extension import load

    folder.mkdir(exist_ok=True)
    # ninja lies beside the interpreter, which need not be on the path.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ.setdefault("MAX_JOBS", "2")
    load(
        NAME,
        [str(source) for source in SOURCES if source.suffix == ".cpp"],
        extra_cflags=["-O1", "-Wall", "-Wno-unknown-pragmas"],
        build_directory=str(folder),
    )


if __name__ == "__main__":
    _compile(Path(sys.argv[1]))
