"""Parakeet-CTC on the simulated device, by the engine itself; run by tests/npu/test_simulated_families.py."""

from __future__ import annotations

from check_families import (  # the fixtures run by their names
    ARTIFACTS,
    SHORT,
    Opened,
    devices_in_program,
    devices_in_script,
    healthy,
    host_copies,
    on_npu,
    test_it_says_what_the_cpu_says,
)
from torch_npu import simulator

from runtime.artifact import open_artifact

__all__ = ["healthy", "on_npu", "test_it_says_what_the_cpu_says"]


def test_no_graph_holds_a_device() -> None:
    artifact = open_artifact(ARTIFACTS[0])
    graphs = artifact.content.graphs.values()
    assert not devices_in_script(artifact.file(next(iter(graphs)).files["torchscript"]))
    assert not [found for graph in graphs for found in devices_in_program(artifact.file(graph.files["pt2"]))]


def test_two_copies_a_recording(on_npu: Opened) -> None:
    """To the device: samples, while their number is an operator's argument. Back: the logits, once."""
    simulator.clear_record()
    on_npu.recognize(SHORT)
    report = simulator.report()
    assert host_copies(report) == {"host_to_device": 1, "device_to_host": 1}
    assert not report["fallbacks"]
