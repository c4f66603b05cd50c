from __future__ import annotations

import sys

import numpy as np
import psutil
import pytest

from runtime.memory import release_memory


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is of Linux's glibc")
def test_what_was_freed_goes_back_to_the_system() -> None:
    """Blocks below one that is still in use stay with glibc otherwise."""
    blocks = [np.ones(100_000, np.uint8) for _ in range(3000)]
    kept = blocks[-1]
    del blocks
    before = psutil.Process().memory_info().rss
    release_memory()
    assert psutil.Process().memory_info().rss < before - 200e6
    assert kept.all()
