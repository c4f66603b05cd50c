"""Reads ONNX graphs and says what ATC will refuse, before anybody carries them to a machine that has it.

What is known of ATC comes from its documents and the source of its parser; no graph was converted by this project.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from export.om.operators import FLOAT16_ONLY, MAX_OPSET, MIN_OPSET, OPERATORS, VALUE_DEPENDENT
from export.om.precision import WITHOUT_BFLOAT16, WITHOUT_FLOAT32_PRODUCTS, graph_dtypes, precision_mode
from runtime.artifact import open_artifact
from runtime.errors import InputError
from runtime.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    import onnx

Level = Literal["refused", "note"]
_DEFAULT_DOMAIN = {"", "ai.onnx"}
_CONTROL_FLOW = {"Loop", "Scan"}
# Types of tensors that every version of the parser knows and that operators of the device exist for.
_DTYPES = {"FLOAT", "FLOAT16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL"}
# Known to some: bfloat16 since CANN 8 and on 910B and later, double by operators that run on the device's own CPU.
_PARTLY = {
    "BFLOAT16": "needs CANN 8 or later and a 910B or later; 310P and 310B have no bfloat16",
    "DOUBLE": "few operators take it, and those run on the device's CPU; export float32",
}
_FLOAT = 1  # onnx.TensorProto.FLOAT
_MAX_NAMED = 5  # nodes in one line


@dataclass(frozen=True)
class Finding:
    """One thing that ATC will refuse (`refused`), or that needs a decision or a newer CANN (`note`)."""

    file: str
    level: Level
    rule: str
    where: str
    found: str
    advice: str

    def __str__(self) -> str:
        """Return the finding as one line."""
        line = f"{self.file}: {self.level}: {self.rule}: {self.where}: {self.found}; {self.advice}"
        return line if line.isprintable() else repr(line)[1:-1]


def onnx_files(path: Path) -> list[Path]:
    """Return the ONNX files of an artifact's folder, or the file itself.

    Raises
    ------
    InputError
        It is neither.
    DamagedArtifactError
        The artifact is damaged.

    """
    if path.is_file():
        return [path]
    if not (path / MANIFEST_NAME).exists():
        raise InputError(f"{path}: expected an artifact's folder or an ONNX file, found neither")
    artifact = open_artifact(path)
    names = sorted({graph.files["onnx"] for graph in artifact.content.graphs.values() if "onnx" in graph.files})
    if not names:
        raise InputError(f"{path}: expected graphs in ONNX, found none; export with --formats onnx")
    return [artifact.file(name) for name in names]


def check_onnx(path: Path, soc: str | None = None) -> list[Finding]:
    """Return what ATC will refuse in an ONNX file, and what it may; the weights are not read.

    Parameters
    ----------
    path : Path
        The file.
    soc : str, optional
        For which chip (`export.om.precision.soc_of`): its dtypes count, and the precision that is taken is told.

    Raises
    ------
    InputError
        The file is not ONNX.

    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # onnx needs it, and has no types

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise InputError(f"{path}: expected an ONNX file, found something else ({error})") from error
    if not model.HasField("graph") or not model.opset_import:
        raise InputError(f"{path}: expected an ONNX file, found one without a graph or an opset")
    try:
        findings = [Finding(path.name, *found) for rule in _RULES for found in rule(model, path.parent)]
    except (AttributeError, TypeError) as error:  # protobuf gives bytes for a string that is no UTF-8
        raise InputError(f"{path}: expected an ONNX file, found one with names that are no text") from error
    return findings if soc is None else _on(soc, path, findings)


def _on(soc: str, path: Path, findings: list[Finding]) -> list[Finding]:
    """Return the findings for a SoC, which settles what is a note without one."""
    if soc.startswith(WITHOUT_BFLOAT16):
        advice = f"{soc} has no bfloat16; export fp16"
        findings = [
            replace(each, level="refused", advice=advice) if each.found == "bfloat16" else each for each in findings
        ]
    else:
        findings = [each for each in findings if each.found != "bfloat16"]
    if any(each.level == "refused" for each in findings):
        return findings
    graph = graph_dtypes(path)
    float32_products = not soc.startswith(WITHOUT_FLOAT32_PRODUCTS)
    mode = precision_mode(graph, float32_products=float32_products)
    if graph.products and not float32_products:
        found = f"{len(graph.products)} products of float32, which {soc} computes in float16"
        advice = f"compare the result; converted with {mode}"
    elif graph.float16_only:
        found, advice = "origin may refuse what CANN has in float16 alone", f"converted with {mode}"
    else:
        return findings
    return [*findings, Finding(path.name, "note", "precision", "graph", found, advice)]


_Found = tuple[Level, str, str, str, str]


def _opsets(model: onnx.ModelProto, _: Path) -> Iterator[_Found]:
    default = [opset.version for opset in model.opset_import if opset.domain in _DEFAULT_DOMAIN]
    if len(default) != 1:
        yield "refused", "opset", "model", f"{len(default)} versions of the default domain", "export with one"
    for version in default:
        if not MIN_OPSET <= version <= MAX_OPSET:
            advice = f"export with opset {MIN_OPSET} to {MAX_OPSET}"
            yield "refused", "opset", "model", f"opset {version} of the default domain", advice
    for function in model.functions:
        yield "refused", "function", function.name, "a function of the model's own", "inline it (onnx.inliner)"


def _nodes(model: onnx.ModelProto, _: Path) -> Iterator[_Found]:
    """Yield operators that ATC does not know, each with the nodes that use it."""
    nodes: dict[tuple[str, str], list[onnx.NodeProto]] = {}
    for graph in _graphs(model.graph):
        for node in graph.node:
            nodes.setdefault(("" if node.domain in _DEFAULT_DOMAIN else node.domain, node.op_type), []).append(node)
    for function in model.functions:
        nodes.pop((function.domain, function.name), None)  # a finding of its own
    for (domain, operator), users in sorted(nodes.items()):
        if domain:
            advice = "export without operators of other domains"
            yield "refused", "operator", _named(users), f"{domain}::{operator}", advice
        elif operator in _CONTROL_FLOW:
            advice = "ATC takes If alone; unroll it, or run the loop on the host"
            yield "refused", "control flow", _named(users), operator, advice
        elif operator not in OPERATORS:
            advice = "not among CANN's ONNX operators; write it with others"
            yield "refused", "operator", _named(users), operator, advice
        else:
            yield from _known_operator(model, operator, users)


def _known_operator(model: onnx.ModelProto, operator: str, users: list[onnx.NodeProto]) -> Iterator[_Found]:
    if operator == "If":
        yield "note", "control flow", _named(users), operator, "both branches are compiled; a fixed branch is faster"
    if operator in VALUE_DEPENDENT:
        level: Level = "refused" if any(_symbolic(model)) else "note"
        found = f"{operator}, whose shape depends on values"
        yield level, "dynamic shape", _named(users), found, "no gear of --dynamic_dims can hold it; use a mask"
    if operator in FLOAT16_ONLY:
        float32 = {name for graph in _graphs(model.graph) for dtype, name in _typed(graph) if dtype == _FLOAT}
        if any(float32.intersection((*node.input, *node.output)) for node in users):
            advice = "CANN documents float16 alone; compare the result, or export fp16"
            yield "note", "dtype", _named(users), f"{operator} in float32", advice


def _dtypes(model: onnx.ModelProto, _: Path) -> Iterator[_Found]:
    from onnx import TensorProto

    known = {number: name for name, number in TensorProto.DataType.items()}
    found: dict[str, list[str]] = {}
    for graph in _graphs(model.graph):
        for value in (*graph.input, *graph.output):
            if not value.type.HasField("tensor_type"):
                yield "refused", "dtype", value.name, "not a tensor", "export with tensors alone"
        if graph.sparse_initializer:
            yield "refused", "dtype", graph.name, "sparse initializers", "export dense ones"
        for data_type, name in _typed(graph):
            found.setdefault(known.get(data_type, f"type {data_type}"), []).append(name)
    for dtype, names in sorted(found.items()):
        if dtype in _PARTLY:
            yield "note", "dtype", _listed(names), dtype.lower(), _PARTLY[dtype]
        elif dtype not in _DTYPES:
            yield "refused", "dtype", _listed(names), dtype.lower(), "export float32, float16 or integers"


def _typed(graph: onnx.GraphProto) -> Iterator[tuple[int, str]]:
    """Yield the data type and the name of every tensor whose type the graph says."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type"):
            yield value.type.tensor_type.elem_type, value.name
    for tensor in graph.initializer:
        yield tensor.data_type, tensor.name
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t.data_type, _name(node)
            elif node.op_type == "Cast" and attribute.name == "to":
                yield attribute.i, _name(node)


def _shapes(model: onnx.ModelProto, _: Path) -> Iterator[_Found]:
    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialized]
    if not inputs:
        yield "refused", "shape", "graph", "no input", "ATC takes graphs with inputs"
    for value in inputs:
        if set(value.name) & set(":;, \"'"):
            advice = "--input_shape cannot hold such a name; rename it"
            yield "refused", "shape", repr(value.name), "a name with a separator in it", advice
        if not value.type.HasField("tensor_type"):
            continue  # a dtype's finding
        if not value.type.tensor_type.HasField("shape"):
            yield "refused", "shape", value.name, "no shape", "export with a shape; dimensions may be symbolic"
        elif any(dim.HasField("dim_value") and dim.dim_value < 1 for dim in value.type.tensor_type.shape.dim):
            yield "refused", "shape", value.name, "a dimension below 1", "name it, or give it a size"
    for name, dims in _symbolic(model):
        advice = "om/convert.sh compiles gears for it, or a range (DYNAMIC=range)"
        yield "note", "dynamic shape", name, f"free dimensions: {dims}", advice


def _symbolic(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    initialized = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        free = [dim.dim_param or "?" for dim in dims if not dim.HasField("dim_value")]
        if free and value.name not in initialized:
            yield value.name, ", ".join(free)


def _external_data(model: onnx.ModelProto, folder: Path) -> Iterator[_Found]:
    """Yield files of weights that are not regular files beside the graph, and stretches that they do not have."""
    from onnx import TensorProto

    ends: dict[str, int] = {}
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                numbers = [entries.get(key, "0") for key in ("offset", "length")]
                end = sum(map(int, numbers)) if all(number.isdecimal() for number in numbers) else -1
                name = entries.get("location", "")
                ends[name] = -1 if end < 0 or ends.get(name, 0) < 0 else max(ends.get(name, 0), end)
    for name, end in sorted(ends.items()):
        if reason := _refused_file(folder, name, end):
            advice = "put the weights beside the graph, as the exporter wrote them"
            yield "refused", "external data", repr(name), reason, advice


def _refused_file(folder: Path, name: str, end: int) -> str | None:
    parts = PurePosixPath(name).parts
    path = folder / name
    if not parts or ".." in parts or name.startswith("/") or "\\" in name or "\0" in name:
        return "a path that leaves the graph's folder"
    if path.is_symlink() or not path.is_file() or path.resolve() != folder.resolve() / name:
        return "a link, or no file"
    if path.stat().st_nlink > 1:
        return "a hardlink"
    if not 0 <= end <= path.stat().st_size:
        return f"{path.stat().st_size} bytes, of which the graph wants those up to {end}"
    return None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes' attributes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def _named(nodes: list[onnx.NodeProto]) -> str:
    return _listed([_name(node) for node in nodes])


def _name(node: onnx.NodeProto) -> str:
    return node.name or next(iter(node.output), node.op_type)


def _listed(names: list[str]) -> str:
    rest = len(names) - _MAX_NAMED
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:_MAX_NAMED])
    return f"{shown} and {rest} more" if rest > 0 else shown


_RULES = (_opsets, _nodes, _dtypes, _shapes, _external_data)
