"""Parakeet-TDT on the simulated device, by the engine itself; run by tests/npu/test_simulated_families.py.

The checks of `check_families` that hold for any family run here with parakeet-pocket; beside them stands what is its
own: the encoder on the device with the search on the host, or the search there too.
"""

from __future__ import annotations

from typing import Any

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
from runtime.families.parakeet_tdt.settings import decode_graph
from runtime.results import TimedTranscript

__all__ = ["healthy", "on_npu"]

CLIP, OTHER = ROOT / "samples" / "short_en_2.wav", ROOT / "samples" / "joined_en.wav"
SEARCHES: dict[str, dict[str, Any]] = {"host": {}, "device": {"decode": "device", "decode_steps": 32}}


def heard(result: TimedTranscript) -> dict[str, Any]:
    """What was recognised, without what was asked of the device."""
    return {key: value for key, value in said(result).items() if key != "counts"}


@pytest.mark.parametrize("search", SEARCHES)
def test_it_says_what_the_cpu_says(on_npu: Opened, search: str) -> None:
    """By the search on the CPU, which is what is expected of either."""
    on_cpu = shared(on_npu.artifact.path, on_npu.engine.name, "cpu")
    for path in (CLIP, OTHER):
        expected = heard(on_cpu.recognize(path))
        assert expected["text"]
        assert alike(heard(on_npu.recognize(path, **SEARCHES[search])), expected)
    assert not alike(heard(on_npu.recognize(CLIP)), expected)  # the comparison can tell


def test_no_graph_holds_a_device_or_a_recurrent_operator() -> None:
    """The prediction net's LSTM is made of linears; its own operator is a legacy one, which no NPUGraph holds."""
    artifact = open_artifact(ARTIFACTS[0])
    graphs = artifact.content.graphs
    assert not devices_in_script(artifact.file(next(iter(graphs.values())).files["torchscript"]))
    assert not [found for graph in graphs.values() for found in devices_in_program(artifact.file(graph.files["pt2"]))]
    for name in ENGINES:
        engine = opened(ARTIFACTS[0], name, "cpu").engine
        for graph in graphs:
            engine.open(graph)
            operators = {operator.removeprefix("aten::").removeprefix("aten.") for operator in engine._operators(graph)}
            assert operators
            assert not [operator for operator in operators if operator.startswith(("lstm", "gru", "rnn"))]


def waits(report: dict[str, Any]) -> int:
    return int(sum(report["synchronizations"].values()))


@pytest.mark.parametrize("search", SEARCHES)
def test_copies_and_operators_are_those_that_were_counted(on_npu: Opened, search: str) -> None:
    on_npu.recognize(CLIP, **SEARCHES[search])
    simulator.clear_record()
    counts = on_npu.recognize(CLIP, **SEARCHES[search]).counts
    report = simulator.report()
    assert host_copies(report) == {"host_to_device": counts["copies_in"], "device_to_host": counts["copies_out"]}
    assert not report["fallbacks"]
    # Operators of the graphs as written: the device runs those that they are composed of.
    assert 0 < counts["operators"] <= 3 * report["operators_run"]
    if search == "host":
        # Samples and length to the device, the encoder's frames back.
        assert (counts["calls"], counts["copies_in"], counts["copies_out"]) == (2, 2, 1)
        assert counts["host_calls"] > 10
    else:
        calls = counts["calls"] - 3  # front-end, encoder, the first step
        assert calls >= 1
        # The same two, the state that the search begins with; seven columns for each call of 32 steps.
        assert (counts["copies_in"], counts["copies_out"]) == (7, 7 * calls)
        assert counts["host_calls"] == 0


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("operator", ["aten::glu", "aten::argmax"])
def test_an_operator_that_the_device_lacks_fails_by_name(name: str, operator: str) -> None:
    """One of the encoder, one of the search."""
    run = shared(ARTIFACTS[0], name)
    simulator.apply({"deny": [operator]})
    with pytest.raises(Exception, match=operator.removeprefix("aten::")):
        run.recognize(CLIP, **SEARCHES["device"])


@pytest.mark.parametrize(
    ("operators", "kind", "amount", "gate"),
    [
        ("aten::convolution", "hf32", 0.0, "structure"),
        ("aten::(matmul|mm|bmm|addmm|linear)", "hf32", 0.0, "structure"),
        ("aten::(matmul|mm|bmm|addmm|linear)", "fp16", 0.0, "structure"),
        ("aten::glu", "gain", 1.01, "structure"),
        ("aten::native_layer_norm", "nan", 0.0, "overflow"),
        ("aten::sigmoid", "gain", 1.01, "structure"),
    ],
)
def test_a_numeric_fault_above_tolerance_fails(operators: str, kind: str, amount: float, gate: str) -> None:
    found, gates = verdict(shared(ARTIFACTS[0], "torchscript"), operators, kind, amount)
    assert found == "fail"
    assert gate in gates


def test_a_numeric_fault_below_tolerance_passes() -> None:
    assert verdict(shared(ARTIFACTS[0], "torchscript"), "aten::glu", "gain", 1 + 1e-6) == ("pass", set())


def test_the_steps_of_the_search_have_one_shape_for_each_length(on_npu: Opened) -> None:
    run = opened(on_npu.artifact.path, on_npu.engine.name)
    run.recognize(OTHER, **SEARCHES["device"])
    run.recognize(CLIP, **SEARCHES["device"])
    shapes = run.engine.probe.shapes()
    assert shapes == {"frontend": 2, "encoder": 2, "step": 1, decode_graph(32): 2}
