"""Makes the virtual environment of `make test-torch-npu`: torch, its torch_npu and what the box needs.

    python tests/torch_npu_stub/environment.py .cache/torch-npu-2.9.0.post2 2.9.0.post2 [INDEX]

INDEX is a package index that has torch for the CPU only. Where a wheel cannot be had it ends with exit code 3 and one
line that says so.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
# torch's own pin, what only torch for CUDA pulls, and what torch 2.11 and 2.12 want older.
OTHER_TORCH = re.compile(r"(torch|triton|setuptools|nvidia[\w-]*|cuda[\w-]*)\b")


def make_environment(folder: Path, torch_npu: str, index: str | None) -> None:
    """Make the virtual environment in `folder` with torch_npu and its torch: 2.9.0 for 2.9.0.post2."""
    version = re.sub(r"\.post\d+$", "", torch_npu)
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    pip = Pip(folder, version)
    if index:
        pip.install("--no-deps", "--index-url", index, f"torch=={version}")
    else:
        _refuse_cuda(pip, version)
    pip.install(f"torch=={version}", f"torch_npu=={torch_npu}")
    pip.install("--editable", f"{ROOT}[torch,verify]")


class Pip:
    """pip of an environment, held to the project's pins but for torch's."""

    def __init__(self, folder: Path, version: str) -> None:
        self._version = version
        self._python = folder / "bin" / "python"
        self._constraints = folder / "constraints.txt"
        pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        kept = [pin for pin in pins if not OTHER_TORCH.match(pin)]
        self._constraints.write_text("\n".join([*kept, f"torch=={version}", ""]), encoding="utf-8")

    def install(self, *arguments: str) -> str:
        """Run `pip install` and return what it prints."""
        options = ("-qq", "--disable-pip-version-check", "--constraint", str(self._constraints))
        command = [str(self._python), "-m", "pip", "install", *options, *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "pip failed")
            give_up(self._version, f"cannot be installed by {sys.version.split()[0]}'s pip: {reason}")
        return done.stdout


def _refuse_cuda(pip: Pip, version: str) -> None:
    """Give up where pip's torch would pull in gigabytes of CUDA libraries."""
    looking = ("--dry-run", "--ignore-installed", "--no-deps", "--report", "-")
    report = json.loads(pip.install(*looking, f"torch=={version}"))
    (torch,) = report["install"]
    machine = report["environment"]["platform_machine"]
    needed = [text for text in torch["metadata"].get("requires_dist", []) if text.startswith(("nvidia", "cuda"))]
    if any("platform_machine" not in text or machine in text for text in needed):
        give_up(
            version,
            f"not installed: this package index has torch {version} for {machine} with gigabytes of CUDA only; "
            "name one that has it for the CPU by TORCH_INDEX=",
        )


def give_up(version: str, reason: str) -> NoReturn:
    """End: nothing was tested."""
    sys.stderr.write(f"test-torch-npu: torch and torch_npu {version} {reason}; these tests DID NOT RUN\n")
    raise SystemExit(3)


if __name__ == "__main__":
    make_environment(Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
