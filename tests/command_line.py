"""The command line as a user meets it: a real process, its two streams and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLES = REPOSITORY / "samples"
SHORT = SAMPLES / "short_en.wav"


def atlasport(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, on one thread and, as it seems, in a terminal of 100 columns."""
    return subprocess.run(
        [sys.executable, "-m", "atlasport", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def assert_one_line(process: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """The command ended with that code, and said why in one line with these parts."""
    assert process.returncode == code, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("atlasport: ")
    for part in parts:
        assert part in lines[0]
