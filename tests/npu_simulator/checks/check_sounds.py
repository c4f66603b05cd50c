"""Sound events on the simulated device, by the engine itself; run by tests/npu/test_simulated_families.py.

The checks of `check_families` that hold for any family run here with sed-pocket; beside them stands what is its own:
graphs of open length, and a GRU.
"""

from __future__ import annotations

import pytest
from check_families import (  # the fixtures run by their names
    ARTIFACTS,
    ENGINES,
    Opened,
    alike,
    devices_in_program,
    devices_in_script,
    healthy,
    host_copies,
    on_npu,
    opened,
    said,
    shared,
    verdict,
)
from npu_simulator import ROOT
from torch_npu import simulator

from runtime.artifact import open_artifact
from runtime.errors import InputError

__all__ = ["healthy", "on_npu"]

CLIP, OTHER = ROOT / "samples" / "sed_1.flac", ROOT / "samples" / "sed_2.flac"
GRU = "aten::gru"


def test_it_hears_what_the_cpu_hears(on_npu: Opened) -> None:
    on_cpu = shared(on_npu.artifact.path, on_npu.engine.name, "cpu")
    for path in (CLIP, OTHER):
        expected = said(on_cpu.recognize(path))
        assert expected["events"]
        assert alike(said(on_npu.recognize(path)), expected)
    assert not alike(said(on_npu.recognize(CLIP)), expected)  # the comparison can tell


def test_no_graph_holds_a_device() -> None:
    artifact = open_artifact(ARTIFACTS[0])
    graphs = artifact.content.graphs.values()
    assert not devices_in_script(artifact.file(next(iter(graphs)).files["torchscript"]))
    assert not [found for graph in graphs for found in devices_in_program(artifact.file(graph.files["pt2"]))]


def test_two_copies_each_way_a_window(on_npu: Opened) -> None:
    """To the device: samples, log-mel. Back: log-mel, logits. The GRU's first states are made there once."""
    simulator.clear_record()
    on_npu.recognize(CLIP)
    report = simulator.report()
    assert host_copies(report) == {"host_to_device": 2, "device_to_host": 2}
    assert not report["fallbacks"]


@pytest.mark.parametrize("name", ENGINES)
def test_a_gru_that_the_device_lacks_fails_by_name(name: str) -> None:
    run = shared(ARTIFACTS[0], name)
    simulator.apply({"deny": [GRU]})
    with pytest.raises(Exception, match="gru"):
        run.recognize(CLIP)


@pytest.mark.parametrize(
    ("operators", "kind", "amount", "gate"),
    [
        (GRU, "gain", 1.1, "structure"),
        (GRU, "fp16", 0.0, "structure"),
        ("aten::convolution", "hf32", 0.0, "structure"),
        (GRU, "nan", 0.0, "overflow"),
    ],
)
def test_a_numeric_fault_above_tolerance_fails(operators: str, kind: str, amount: float, gate: str) -> None:
    found, gates = verdict(shared(ARTIFACTS[0], "torchscript"), operators, kind, amount)
    assert found == "fail"
    assert gate in gates


def test_a_numeric_fault_below_tolerance_passes() -> None:
    assert verdict(shared(ARTIFACTS[0], "torchscript"), GRU, "gain", 1 + 1e-6) == ("pass", set())


def test_a_graph_with_a_gru_is_not_captured() -> None:
    with pytest.raises(InputError, match="gru"):
        opened(ARTIFACTS[0], "torchscript", capture=True).recognize(CLIP)
