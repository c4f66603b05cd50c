"""Parakeet-CTC on the simulated device beyond check_families.py; run by tests/npu/test_simulated_families.py."""

from __future__ import annotations

from on_device import RECORDING, Opened, host_copies
from torch_npu import simulator

pytest_plugins = ("on_device",)


def test_two_copies_a_recording(on_npu: Opened) -> None:
    """To the device: samples, while their number is an operator's argument. Back: the logits, once."""
    simulator.clear_record()
    on_npu.recognize(RECORDING)
    report = simulator.report()
    assert host_copies(report) == {"host_to_device": 1, "device_to_host": 1}
    assert not report["fallbacks"]
