"""Sound events on the simulated device beyond check_families.py; run by tests/npu/test_simulated_families.py.

A recurrence of fixed length is captured, between graphs of open length.
"""

from __future__ import annotations

from on_device import OTHER, RECORDING, Opened, alike, host_copies, opened, replays, said, shared
from torch_npu import simulator

pytest_plugins = ("on_device",)
STEPS = 50


def test_two_copies_each_way_a_window(on_npu: Opened) -> None:
    """To the device: samples, log-mel. Back: log-mel, logits. Gates and states of the GRU stay there."""
    simulator.clear_record()
    on_npu.recognize(RECORDING)
    report = simulator.report()
    assert host_copies(report) == {"host_to_device": 2, "device_to_host": 2}
    assert not report["fallbacks"]


def test_work_of_the_recurrence(on_npu: Opened) -> None:
    """A clip of 6 s has 150 scores: three calls of 50 steps, each of ten operators that compute."""
    simulator.clear_record()
    on_npu.recognize(RECORDING)
    counts = {name: calls["count"] for name, calls in simulator.report()["operators"].items()}
    assert counts["aten::tanh"] == counts["aten::sigmoid"] == 3 * STEPS
    assert not [name for name in counts if "gru" in name]


def test_the_recurrence_is_captured_and_replayed_once_a_call() -> None:
    expected = said(shared("torchscript", "cpu").recognize(RECORDING))
    run = opened("torchscript", capture=True)
    run.recognize(OTHER)
    simulator.clear_record()
    assert alike(said(run.recognize(RECORDING)), expected)
    assert replays() == 3
