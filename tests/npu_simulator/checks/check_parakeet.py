"""Parakeet-TDT on the simulated device, by the engine itself; run by tests/npu/test_simulated_families.py.

The checks of `check_families` that hold for any family run here with parakeet-pocket; beside them stands what is its
own: the encoder on the device with the search on the host, or the search there too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from check_families import (  # the fixtures run by their names
    ARTIFACTS,
    ENGINES,
    Opened,
    alike,
    devices_in_program,
    devices_in_script,
    healthy,
    host_copies,
    nodes_of_program,
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
from runtime.results import Transcript

__all__ = ["healthy", "on_npu"]

CLIP, OTHER = ROOT / "samples" / "short_en_2.wav", ROOT / "samples" / "joined_en.wav"
SEARCHES: dict[str, dict[str, Any]] = {"host": {}, "device": {"decode": "device", "decode_steps": 32}}
RECURRENT = re.compile("lstm|gru|rnn", re.IGNORECASE)


def heard(result: Transcript) -> dict[str, Any]:
    """What was recognised, by whichever engine."""
    return {key: value for key, value in said(result).items() if key != "engine"}


@pytest.mark.parametrize("search", SEARCHES)
def test_it_says_what_the_cpu_says(on_npu: Opened, search: str) -> None:
    """By TorchScript and the search on the host, which is what is expected of any engine and either search."""
    on_cpu = shared(on_npu.artifact.path, "torchscript", "cpu")
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
    for path in {file for graph in graphs.values() for file in graph.files.values()}:
        assert not [operator for operator in operators_of(artifact.file(path)) if RECURRENT.search(operator)]


def operators_of(file: Path) -> set[str]:
    """The operators that a file's graphs name, in any of the three formats."""
    if file.suffix == ".onnx":
        return {node.op_type for node in onnx.load(file, load_external_data=False).graph.node}
    if file.suffix == ".pt2":
        return {node["target"] for node in nodes_of_program(file)}
    script = torch.jit.load(file, map_location="cpu")
    methods = [script._c._get_method(method) for method in script._c._method_names()]
    return {node.kind() for method in methods for node in method.inlined_graph.nodes()}


def test_a_recurrent_operator_shows(tmp_path: Path) -> None:
    gru, inputs = torch.nn.GRU(2, 3), (torch.zeros(1, 1, 2),)
    torch.jit.save(torch.jit.trace(gru, inputs), tmp_path / "model.ts")
    torch.export.save(torch.export.export(gru, inputs), tmp_path / "step.pt2")
    for name in ("model.ts", "step.pt2"):
        assert any(RECURRENT.search(operator) for operator in operators_of(tmp_path / name))


@pytest.mark.parametrize("search", SEARCHES)
def test_copies_and_operators_are_those_that_were_counted(on_npu: Opened, search: str) -> None:
    on_npu.recognize(CLIP, **SEARCHES[search])
    simulator.clear_record()
    counts = on_npu.recognize(CLIP, **SEARCHES[search]).counts
    report = simulator.report()
    # One number is no copy: the length of a recording, and all of the search's state that has one number a recording.
    numbers = {"host": 1, "device": 4}[search]
    copied = {"host_to_device": counts["copies_in"] - numbers, "device_to_host": counts["copies_out"]}
    assert host_copies(report) == copied
    assert not report["fallbacks"]
    assert counts["operators"] == report["operators_run"]
    assert counts["syncs"] == sum(report["synchronizations"].values())
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


def test_each_length_of_a_recording_is_a_shape_of_its_own() -> None:
    """Which is why `doctor` calls the shapes free."""
    run = opened(ARTIFACTS[0], "torchscript")
    run.recognize(OTHER, **SEARCHES["device"])
    run.recognize(CLIP, **SEARCHES["device"])
    shapes = run.engine.probe.shapes()
    assert shapes == {"frontend": 2, "encoder": 2, "step": 1, decode_graph(32): 2}
