"""What the checks of the simulated device share: pytest_plugins = ("probes",) gives each a healthy device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch_npu import simulator

X = torch.linspace(-2, 2, 12).view(3, 4)


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No faults, float32 as it is, no fallback, an empty record."""
    monkeypatch.setenv("TORCH_NPU_FALLBACK_CPU_DISABLE", "1")
    simulator.restart()
    torch.npu.conv.allow_hf32 = False
    simulator.clear_record()
    yield
    simulator.restart()


def device_copies() -> dict[str, int]:
    return {direction: copies["count"] for direction, copies in simulator.report()["copies"].items()}


def count(operator: str) -> int:
    return simulator.report()["operators"].get(operator, {"count": 0})["count"]
