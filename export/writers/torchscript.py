"""Writes all graphs of a model into one TorchScript file, in which each graph is a method and weights are stored once.

The methods are written as TorchScript source, one line per node of the captured program, and compiled into a single
class whose attributes are the parameters and buffers. `torch.jit.trace` would run every graph for real, as convolutions
cannot be traced on the meta device, and its files hold stack traces and names that change from one write to the next.
"""

from __future__ import annotations

import io
import math
import operator
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.fx import Node

from export.graphs import GraphDefinition, exported_programs
from export.unroll import unroll_program
from runtime.errors import GateError

# torch gives these no types.
_ScriptModule: Any = torch._C.ScriptModule  # noqa: SLF001
_wrap: Any = torch.jit._recursive.wrap_cpp_module  # noqa: SLF001
_jit_load: Any = torch.jit.load
# How sizes of open dimensions are computed.
_SIZES: dict[Any, str] = {
    torch.ops.aten.sym_size.int: "{}.size({})",
    operator.add: "{} + {}",
    operator.sub: "{} - {}",
    operator.mul: "{} * {}",
    operator.floordiv: "{} // {}",
}


def write_torchscript(graphs: Mapping[str, GraphDefinition], file: Path) -> dict[str, str]:
    """Write one TorchScript file; the same graphs give the same bytes under the same file name.

    `torch.jit.load(file, map_location=device)` reads it; `getattr(loaded, graph)(*inputs)` returns a tensor, or a tuple
    of tensors where the graph has several outputs. Weights are attributes, named like the parameters with "__" for ".".

    Parameters
    ----------
    graphs : Mapping[str, GraphDefinition]
        By name, with real parameters; mapped ones are read once, as they are written.
    file : Path
        The file, overwritten if it is there.

    Returns
    -------
    dict[str, str]
        Graph to file name.

    Raises
    ------
    GateError
        A graph makes tensors of its own, and would not run on another device. No file is left.

    """
    # A compilation unit of its own: in the global one the second class of a name gets another name.
    holder = _ScriptModule("__torch__.Graphs", torch._C.CompilationUnit(), False)  # noqa: SLF001, FBT003
    holder._register_attribute("training", torch._C.BoolType.get(), False)  # noqa: SLF001, FBT003
    script = _wrap(holder)
    for graph, program in exported_programs(graphs.values()):
        if graph.repeats > 1:
            unroll_program(program, graph)
        source, tensors = _method(graph, program)
        for name, tensor in tensors.items():
            if not holder.hasattr(name):
                holder._register_attribute(name, torch._C.TensorType.get(), tensor)  # noqa: SLF001
        script.define(source)
    script.save(str(file))
    try:
        check_constants(file)
    except GateError:
        file.unlink()
        raise
    return dict.fromkeys(graphs, file.name)


def check_constants(file: Path) -> None:
    """Check that no method of a TorchScript file holds a device, which `map_location` would not change.

    Raises
    ------
    GateError
        Names the method and the device.

    """
    script = _jit_load(_without_weights(file), map_location="meta")
    for name in script._c._method_names():  # noqa: SLF001
        for constant in script._c._get_method(name).graph.findAllNodes("prim::Constant", recurse=True):  # noqa: SLF001
            if constant.output().type().kind() == "DeviceObjType":
                raise GateError(
                    f"{file.name}: graph {name}: expected no device, found {constant.output().toIValue()}; "
                    "create no tensor in forward, slice a registered buffer"
                )


def _without_weights(file: Path) -> io.BytesIO:
    """Return a TorchScript file with empty tensors, as reading 3 GB of weights to look at the code takes 2 GB."""
    result = io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(result, "w") as copy:
        for record in source.namelist():
            copy.writestr(record, b"" if "/data/" in record else source.read(record))
    result.seek(0)
    return result


def _method(graph: GraphDefinition, program: ExportedProgram) -> tuple[str, dict[str, torch.Tensor]]:
    """Return a graph's method as TorchScript source, and the tensors that it reads by attribute name."""
    names: dict[Any, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    inputs = iter(graph.inputs)
    lines = [f"def {graph.name}(self, {', '.join(f'{spec.name}: Tensor' for spec in graph.inputs)}):"]
    *nodes, output = program.graph.nodes
    placeholders = [node for node in nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            names[node] = next(inputs).name
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target is not None:
            # Buffers of two graphs may differ under the same name.
            prefix = "" if spec.kind is InputKind.PARAMETER else f"{graph.name}."
            attribute = (prefix + spec.target).replace(".", "__")
            names[node] = f"self.{attribute}"
            if node.users:
                tensors[attribute] = _tensor(graph, spec)
        else:
            raise GateError(
                f"graph {graph.name}: expected no tensor made in forward, found {spec.target}; "
                "slice a registered buffer"
            )
    for node in nodes[len(placeholders) :]:
        # The underscore keeps apart what the program and what the graph's inputs call themselves.
        names[node] = f"_{node.name}"
        lines.append(f"  {names[node]} = {_call(node, names)}")
    results = [names[node] for node in output.args[0]]
    lines.append(f"  return {results[0] if len(results) == 1 else '(' + ', '.join(results) + ')'}")
    return "\n".join(lines) + "\n", tensors


def _tensor(graph: GraphDefinition, spec: InputSpec) -> torch.Tensor:
    """Return the real tensor behind an input of the program."""
    assert spec.target is not None
    if spec.kind is InputKind.PARAMETER:
        return graph.module.get_parameter(spec.target).detach()
    return graph.module.get_buffer(spec.target)


def _call(node: Node, names: Mapping[Any, str]) -> str:
    """Return one node of the program as an expression."""
    if node.target is operator.getitem:
        tensors, index = node.args
        return f"{names[tensors]}[{index}]"
    arguments = [_literal(value, names) for value in node.args]
    if node.target in _SIZES:
        return _SIZES[node.target].format(*arguments)
    arguments += [f"{key}={_literal(value, names)}" for key, value in node.kwargs.items()]
    # "aten.add.Tensor": TorchScript finds the overload from the arguments.
    operation = str(node.target).rpartition(".")[0]
    return f"torch.ops.{operation}({', '.join(arguments)})"


def _literal(value: Any, names: Mapping[Any, str]) -> str:
    """Return an argument of a node as TorchScript source."""
    if isinstance(value, Node):
        return names[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_literal(item, names) for item in value)}]"
    if isinstance(value, torch.device):
        return f"torch.device({str(value)!r})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    return repr(value)
