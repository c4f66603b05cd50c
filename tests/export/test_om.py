"""What `check-om` refuses, one hand-made graph each, and what it says of our own graphs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.om import check_onnx, onnx_files
from export.om.operators import OPERATORS
from runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


# --- graphs by hand ---------------------------------------------------------------------------------------------------
def value(name: str, shape: list[int | str | None] | None = None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    *nodes: onnx.NodeProto,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    initializers: list[onnx.TensorProto] | None = None,
    opsets: list[tuple[str, int]] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes or [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "graph",
        [value("x", [1, 4])] if inputs is None else inputs,
        outputs or [value("y", [1, 4])],
        initializers or [],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets or [("", 18)]]
    return helper.make_model(graph, opset_imports=imports, functions=functions or [])


def constant(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def external(location: str, offset: int = 0, length: int = 16) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=text)
    return tensor


def weighted(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model(helper.make_node("Add", ["x", "w"], ["y"], name="add"), initializers=[tensor])


def loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["a"], ["b"])],
        "body",
        [value("i", [], INT64), value("go", [], BOOL), value("a", [1, 4])],
        [value("on", [], BOOL), value("b", [1, 4])],
    )
    node = helper.make_node("Loop", ["n", "c", "x"], ["y"], name="unrolled_not", body=body)
    return model(node, initializers=[constant("n", np.int64(3)), constant("c", np.bool_(True))])  # noqa: FBT003


def scan() -> onnx.ModelProto:
    body = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "body", [value("a", [4])], [value("b", [4])])
    return model(helper.make_node("Scan", ["x"], ["y"], name="scanned", body=body, num_scan_inputs=1))


def inner_operator() -> onnx.ModelProto:
    """A branch that has an operator which ATC does not know."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(operator, ["x"], ["z"], name=f"in_{name}")], name, [], [value("z", [1, 4])]
        )
        for name, operator in (("then", "Relu"), ("else", "Gelu"))
    }
    node = helper.make_node("If", ["c"], ["y"], name="if", **branches)
    return model(node, inputs=[value("x", [1, 4]), value("c", [], BOOL)])


def function() -> onnx.ModelProto:
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    node = helper.make_node("Twice", ["x"], ["y"], name="twice", domain="own")
    return model(node, opsets=[("", 18), ("own", 1)], functions=[twice])


def nonzero() -> onnx.ModelProto:
    node = helper.make_node("NonZero", ["x"], ["y"], name="nz")
    return model(node, inputs=[value("x", [1, "n"])], outputs=[value("y", [2, None], INT64)])


def stft() -> onnx.ModelProto:
    node = helper.make_node("STFT", ["x", "step", "", "length"], ["y"], name="spectrum")
    lengths = [constant("step", np.int64(160)), constant("length", np.int64(400))]
    return model(node, initializers=lengths, outputs=[value("y", None)])


def cast(to: int) -> onnx.ModelProto:
    return model(helper.make_node("Cast", ["x"], ["y"], name="cast", to=to), outputs=[value("y", [1, 4], to)])


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str, str]] = {
    "opset 10": (lambda: model(opsets=[("", 10)]), "opset", "opset 10"),
    "opset 19": (lambda: model(opsets=[("", 19)]), "opset", "opset 19"),
    "two default domains": (lambda: model(opsets=[("", 18), ("ai.onnx", 17)]), "opset", "2 versions"),
    "Loop": (loop, "control flow", "unrolled_not: Loop"),
    "Scan": (scan, "control flow", "scanned: Scan"),
    "in a branch": (inner_operator, "operator", "in_else: Gelu"),
    "STFT": (stft, "operator", "spectrum: STFT"),
    "other domain": (
        lambda: model(
            helper.make_node("FusedGemm", ["x"], ["y"], name="fused", domain="com.microsoft"),
            opsets=[("", 18), ("com.microsoft", 1)],
        ),
        "operator",
        "fused: com.microsoft::FusedGemm",
    ),
    "function": (function, "function", "Twice"),
    "value-dependent shape": (nonzero, "dynamic shape", "nz: NonZero"),
    "complex": (lambda: model(inputs=[value("x", [1, 4], TensorProto.COMPLEX64)]), "dtype", "x: complex64"),
    "strings": (lambda: model(inputs=[value("x", [1, 4], TensorProto.STRING)]), "dtype", "x: string"),
    "float8": (lambda: cast(TensorProto.FLOAT8E4M3FN), "dtype", "float8e4m3fn"),
    "int4": (lambda: cast(TensorProto.INT4), "dtype", "int4"),
    "sequence": (
        lambda: model(inputs=[helper.make_tensor_sequence_value_info("x", FLOAT, None)]),
        "dtype",
        "x: not a tensor",
    ),
    "no input": (
        lambda: model(
            helper.make_node("Relu", ["w"], ["y"]), inputs=[], initializers=[constant("w", np.ones(4, "f4"))]
        ),
        "shape",
        "no input",
    ),
    "no shape": (lambda: model(inputs=[value("x", None)]), "shape", "x: no shape"),
    "size 0": (lambda: model(inputs=[value("x", [0, 4])]), "shape", "a dimension below 1"),
    "separator in a name": (
        lambda: model(helper.make_node("Relu", ["x:0"], ["y"]), inputs=[value("x:0", [1, 4])]),
        "shape",
        "'x:0'",
    ),
    "data above": (lambda: weighted(external("../weights.bin")), "external data", "leaves the graph's folder"),
    "absolute data": (lambda: weighted(external("/etc/hostname")), "external data", "leaves the graph's folder"),
    "data missing": (lambda: weighted(external("nowhere.bin")), "external data", "no file"),
    "linked data": (lambda: weighted(external("link.bin")), "external data", "a link"),
    "hardlinked data": (lambda: weighted(external("hard.bin")), "external data", "a hardlink"),
    "data beyond the end": (lambda: weighted(external("whole.bin", 8)), "external data", "16 bytes"),
    "negative offset": (lambda: weighted(external("whole.bin", -4)), "external data", "up to -1"),
}


def written(folder: Path, graph: onnx.ModelProto) -> Path:
    (folder / "whole.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to("whole.bin")
    (folder / "other.bin").write_bytes(bytes(16))
    (folder / "hard.bin").hardlink_to(folder / "other.bin")
    path = folder / "graph.onnx"
    path.write_bytes(graph.SerializeToString())
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_what_atc_refuses_is_found(name: str, tmp_path: Path) -> None:
    make, rule, part = REFUSED[name]
    found = check_onnx(written(tmp_path, make()))
    refused = [finding for finding in found if finding.level == "refused"]
    assert [finding.rule for finding in refused] == [rule], found
    assert part in str(refused[0])
    assert "\n" not in str(refused[0])


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: cast(TensorProto.BFLOAT16), "bfloat16"),
        (lambda: cast(TensorProto.DOUBLE), "double"),
        (lambda: model(inputs=[value("x", [1, "n"])]), "free dimensions: n"),
    ],
)
def test_what_atc_may_refuse_is_a_note(make: Callable[[], onnx.ModelProto], part: str, tmp_path: Path) -> None:
    (finding,) = check_onnx(written(tmp_path, make()))
    assert finding.level == "note"
    assert part in str(finding)


@pytest.mark.parametrize("opset", [11, 18])
def test_a_plain_graph_passes(opset: int, tmp_path: Path) -> None:
    graph = weighted(external("whole.bin"))
    graph.opset_import[0].version = opset
    assert check_onnx(written(tmp_path, graph)) == []


@pytest.mark.parametrize("content", [b"", b"not onnx", bytes(100), b"\x08\x01"])
def test_no_onnx_is_bad_input(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"graph\.onnx: expected an ONNX file"):
        check_onnx(path)


@settings(max_examples=300)
@given(
    name=st.sampled_from(sorted(REFUSED)),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    length=st.none() | st.integers(0, 300),
)
def test_any_bytes_are_read_or_refused(
    name: str, changes: list[tuple[int, int]], length: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(REFUSED[name][0]().SerializeToString())
    for position, byte in changes:
        data[position % len(data)] = byte
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(data[:length])
    with contextlib.suppress(InputError):
        assert all("\n" not in str(finding) for finding in check_onnx(path))


def test_the_operators_are_onnx_s_own() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    assert known >= OPERATORS
    assert not OPERATORS & {"Loop", "Scan", "STFT", "DFT"}


# --- our own graphs ---------------------------------------------------------------------------------------------------
def test_our_graphs_have_nothing_that_atc_is_known_to_refuse(pocket_artifact: Path, sed_artifact: Path) -> None:
    for artifact, notes in ((pocket_artifact, {"LayerNormalization"}), (sed_artifact, {"free"})):
        found = [finding for path in onnx_files(artifact) for finding in check_onnx(path)]
        assert [finding for finding in found if finding.level == "refused"] == []
        assert {finding.found.split()[0] for finding in found} == notes


# --- the command -----------------------------------------------------------------------------------------------------
def atlasport(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atlasport", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_check_om_lists_and_fails(sed_artifact: Path, tmp_path: Path) -> None:
    bad = written(tmp_path, stft())
    process = atlasport("check-om", sed_artifact, bad, "--json")
    assert process.returncode == 1, process.stderr
    report = json.loads(process.stdout)
    assert report["refused"] == 1
    assert report["files"][str(bad)][0]["found"] == "STFT"
    assert len(report["files"]) == 1 + len(list(sed_artifact.glob("*.onnx")))
    assert atlasport("check-om", sed_artifact).returncode == 0
    assert atlasport("check-om", tmp_path / "nothing").returncode == 2
