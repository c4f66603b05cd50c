"""A family's graphs on the simulated device, by the engine itself; run by tests/npu/test_simulated_families.py.

What holds for any family: what is expected is what TorchScript computes on the CPU, or one of many ways there.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from families import never_in
from on_device import ARTIFACT, CHECKED, ENGINES, OTHER, RECORDING, Opened, alike, said, shared
from torch_npu import simulator

from verify.accuracy import judge_engine

pytest_plugins = ("on_device",)


@pytest.mark.parametrize("way", CHECKED.ways)
def test_it_says_what_the_cpu_says(on_npu: Opened, way: str):
    on_cpu = shared("torchscript", "cpu")
    for path in (RECORDING, OTHER):
        expected = said(on_cpu.recognize(path))
        assert expected.get("events") or expected["segments"][0]["tokens"]
        assert alike(said(on_npu.recognize(path, **CHECKED.ways[way])), expected)
    assert not alike(said(on_npu.recognize(RECORDING)), expected)  # the comparison can tell


def devices_in(file: Path) -> list[Any]:
    """The devices that a TorchScript file or a program holds."""
    if file.suffix == ".pt2":
        return [given for node in nodes_of_program(file) for given in node["inputs"] if "as_device" in given["arg"]]
    script = torch.jit.load(file, map_location="cpu")  # its nodes live as long as it does
    nodes = [n for method in methods_of(script) for n in method.graph.findAllNodes("prim::Constant", recurse=True)]
    assert nodes
    return [node for node in nodes if node.output().type().kind() == "DeviceObjType"]


def operators_of(file: Path) -> set[str]:
    """The operators that a file's graphs name, in any of the three formats."""
    if file.suffix == ".onnx":
        return {node.op_type for node in onnx.load(file, load_external_data=False).graph.node}
    if file.suffix == ".pt2":
        return {node["target"] for node in nodes_of_program(file)}
    script = torch.jit.load(file, map_location="cpu")
    return {node.kind() for method in methods_of(script) for node in method.inlined_graph.nodes()}


def methods_of(script: Any) -> list[Any]:
    return [script._c._get_method(method) for method in script._c._method_names()]


def nodes_of_program(file: Path) -> list[dict[str, Any]]:
    with zipfile.ZipFile(file) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("models/model.json")]
        nodes: list[dict[str, Any]] = json.loads(archive.read(name))["graph_module"]["graph"]["nodes"]
    assert nodes
    return nodes


def test_no_graph_holds_a_device_or_what_it_never_may():
    never = never_in(ARTIFACT.content.family)
    for path in {file for graph in ARTIFACT.content.graphs.values() for file in graph.files.values()}:
        file = ARTIFACT.file(path)
        assert not [operator for operator in operators_of(file) if never.search(operator)], path
        if file.suffix != ".onnx":
            assert not devices_in(file), path


class Baked(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(x.shape[0], device="cpu")


def test_what_no_graph_holds_shows(tmp_path: Path):
    never = never_in("granite_speech")
    gru, sequence, x = torch.nn.GRU(2, 3), torch.zeros(1, 1, 2), torch.zeros(3)
    lengths = ({0: torch.export.Dim("length", min=2)},)
    for name, module, given, shapes in (("gru", gru, sequence, None), ("baked", Baked(), x, lengths)):
        files = tmp_path / f"{name}.ts", tmp_path / f"{name}.pt2"
        torch.jit.save(torch.jit.trace(module, given), files[0])
        torch.export.save(torch.export.export(module, (given,), dynamic_shapes=shapes), files[1])
        for file in files:
            assert any(never.search(operator) for operator in operators_of(file))
            assert devices_in(file) or name == "gru"


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("operator", CHECKED.denied)
def test_an_operator_that_the_device_lacks_fails_by_name(name: str, operator: str):
    run = shared(name)
    simulator.apply({"deny": [operator]})
    with pytest.raises(Exception, match=operator.removeprefix("aten::")):
        run.recognize(RECORDING, **CHECKED.denied[operator])


def verdict(operators: str, kind: str, amount: float) -> tuple[str, set[str]]:
    """Judge one case of each graph with a fault in force; return the verdict and the gates that failed."""
    first = {case.graph: case.name for case in reversed(ARTIFACT.content.cases)}
    engine = shared("torchscript").engine
    simulator.clear_record()
    simulator.apply({"faults": [{"operators": operators, "kind": kind, "amount": amount}]})
    accuracy, _ = judge_engine(ARTIFACT, engine, selected=set(first.values()))
    assert simulator.report()["fault_hits"]
    return accuracy.verdict, {gate.name.partition(".")[0] for gate in accuracy.gates if gate.passed is False}


@pytest.mark.parametrize(("operators", "kind", "amount", "gate"), CHECKED.above)
def test_a_numeric_fault_above_tolerance_fails(operators: str, kind: str, amount: float, gate: str):
    found, gates = verdict(operators, kind, amount)
    assert found == "fail"
    assert gate in gates


@pytest.mark.parametrize(("operators", "kind", "amount"), CHECKED.below)
def test_a_numeric_fault_below_tolerance_passes(operators: str, kind: str, amount: float):
    assert verdict(operators, kind, amount) == ("pass", set())
