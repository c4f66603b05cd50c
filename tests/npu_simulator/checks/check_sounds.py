"""Sound events on the simulated device, by the engine itself; run by tests/npu/test_simulated_families.py.

The checks of `check_families` that hold for any family run here with sed-pocket; beside them stands what is its own:
graphs of open length, and a recurrence of fixed length, which is captured.
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

__all__ = ["healthy", "on_npu"]

CLIP, OTHER = ROOT / "samples" / "sed_1.flac", ROOT / "samples" / "sed_2.flac"
# In the recurrence alone; and in every call of it once a step.
TANH = "aten::tanh"
STEPS = 50


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
    """To the device: samples, log-mel. Back: log-mel, logits. Gates and states of the GRU stay there."""
    simulator.clear_record()
    on_npu.recognize(CLIP)
    report = simulator.report()
    assert host_copies(report) == {"host_to_device": 2, "device_to_host": 2}
    assert not report["fallbacks"]


def test_work_of_the_recurrence(on_npu: Opened) -> None:
    """A clip of 6 s has 150 scores: three calls of 50 steps, each of ten operators that compute."""
    simulator.clear_record()
    on_npu.recognize(CLIP)
    counts = {name: calls["count"] for name, calls in simulator.report()["operators"].items()}
    assert counts["aten::tanh"] == counts["aten::sigmoid"] == 3 * STEPS
    assert not [name for name in counts if "gru" in name]


@pytest.mark.parametrize("name", ENGINES)
def test_an_operator_of_the_recurrence_that_the_device_lacks_fails_by_name(name: str) -> None:
    run = shared(ARTIFACTS[0], name)
    simulator.apply({"deny": [TANH]})
    with pytest.raises(Exception, match="tanh"):
        run.recognize(CLIP)


@pytest.mark.parametrize(
    ("operators", "kind", "amount", "gate"),
    [
        (TANH, "gain", 1.1, "structure"),
        (TANH, "fp16", 0.0, "structure"),
        ("aten::convolution", "hf32", 0.0, "structure"),
        (TANH, "nan", 0.0, "overflow"),
    ],
)
def test_a_numeric_fault_above_tolerance_fails(operators: str, kind: str, amount: float, gate: str) -> None:
    found, gates = verdict(shared(ARTIFACTS[0], "torchscript"), operators, kind, amount)
    assert found == "fail"
    assert gate in gates


def test_a_numeric_fault_below_tolerance_passes() -> None:
    assert verdict(shared(ARTIFACTS[0], "torchscript"), TANH, "gain", 1 + 1e-6) == ("pass", set())


def test_the_recurrence_is_captured_and_replayed_once_a_call() -> None:
    expected = said(shared(ARTIFACTS[0], "torchscript", "cpu").recognize(CLIP))
    run = opened(ARTIFACTS[0], "torchscript", capture=True)
    run.recognize(OTHER)
    simulator.clear_record()
    assert alike(said(run.recognize(CLIP)), expected)
    replays = [event for event in simulator.report()["events"] if event["name"] == "replay"]
    assert len(replays) == 3
