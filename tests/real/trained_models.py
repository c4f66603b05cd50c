"""What the tests of trained models share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

Trained: TypeAlias = Callable[[str, str], Path]


def atlasport(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of atlasport; it has to succeed."""
    command = [sys.executable, "-m", "atlasport", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def recording(name: str) -> Path:
    """Return a recording of recordings.json."""
    path = HERE / "audio" / name
    return path if path.exists() else ROOT / "samples" / name
