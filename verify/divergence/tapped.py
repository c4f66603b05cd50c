"""Writes graphs that return some of their inner values too, in their own format, beside the artifact's files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from runtime.artifact import Artifact
from runtime.manifest import FileEntry, Format, TensorSpec

_PREFIX = ".tapped"
# How sizes of open dimensions are computed.
_SIZES = {"aten::size": "{}.size({})", "aten::add": "{} + {}", "aten::sub": "{} - {}", "aten::mul": "{} * {}"}
_SIZES |= {"aten::floordiv": "{} // {}", "aten::neg": "-{}"}


@contextmanager
def tapped(artifact: Artifact, graph: str, form: Format, values: Sequence[str]) -> Iterator[Artifact]:
    """Yield the artifact with a graph that returns `values` behind its outputs, named by their place: `tap_0`.

    The file lies in the artifact's folder, where ONNX Runtime finds the weights, until the end.
    """
    signature = artifact.content.graphs[graph]
    source = artifact.file(signature.files[form])
    target = artifact.path / f"{_PREFIX}-{graph}{source.suffix}"
    taps = tuple(TensorSpec(name=f"tap_{n}", dtype="float32", shape=("open",)) for n in range(len(values)))
    changed = signature.model_copy(
        update={"outputs": (*signature.outputs, *taps), "files": {**signature.files, form: target.name}}
    )
    content = artifact.content.model_copy(
        update={
            "graphs": {**artifact.content.graphs, graph: changed},
            "files": {**artifact.content.files, target.name: FileEntry(size=0, sha256="0" * 64)},
        }
    )
    try:
        _WRITERS[form](source, target, graph, values)
        yield replace(artifact, manifest=artifact.manifest.model_copy(update={"content": content}))
    finally:
        target.unlink(missing_ok=True)


def _onnx(source: Path, target: Path, _graph: str, values: Sequence[str]) -> None:
    model = onnx.load(str(source), load_external_data=False)
    for place, value in enumerate(values):
        model.graph.node.append(onnx.helper.make_node("Identity", [value], [f"tap_{place}"]))
        model.graph.output.append(onnx.ValueInfoProto(name=f"tap_{place}"))
    onnx.save(model, str(target))


def _program(source: Path, target: Path, _graph: str, values: Sequence[str]) -> None:
    import torch
    from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument

    program = torch.export.load(source)
    by_name = {node.name: node for node in program.graph.nodes}
    output = by_name["output"]
    output.args = ((*output.args[0], *(by_name[value] for value in values)),)
    for value in values:
        spec = OutputSpec(kind=OutputKind.USER_OUTPUT, arg=TensorArgument(name=value), target=None)
        program.graph_signature.output_specs.append(spec)
    program.graph_module.recompile()
    spec = program.module_call_graph[0].signature
    assert spec is not None
    spec.outputs.extend(TensorArgument(name=value) for value in values)
    count = len(program.graph_signature.output_specs)
    spec.out_spec = torch.utils._pytree.tree_structure(tuple(range(count)))  # noqa: SLF001 - its only name
    torch.export.save(program, target)


def _torchscript(source: Path, target: Path, graph: str, values: Sequence[str]) -> None:
    """Write the one method as source again: a method that was loaded cannot be changed."""
    import torch

    load: Any = torch.jit.load
    script_module: Any = torch._C.ScriptModule  # noqa: SLF001
    loaded = load(source, map_location="cpu")
    method = loaded._c._get_method(graph)  # noqa: SLF001 - torch gives no other way
    holder: Any = script_module("__torch__.Graphs", torch._C.CompilationUnit(), False)  # noqa: SLF001, FBT003
    holder._register_attribute("training", torch._C.BoolType.get(), False)  # noqa: SLF001, FBT003
    for node in method.graph.nodes():
        if node.kind() == "prim::GetAttr" and not holder.hasattr(node.s("name")):
            name = node.s("name")
            holder._register_attribute(name, torch._C.TensorType.get(), loaded._c.getattr(name))  # noqa: SLF001
    wrap: Any = torch.jit._recursive.wrap_cpp_module  # noqa: SLF001
    script = wrap(holder)
    script.define(_source(method.graph, graph, values))
    script.save(str(target))


def _source(graph: Any, name: str, values: Sequence[str]) -> str:
    names: dict[str, str] = {}
    _self, *inputs = graph.inputs()
    for place, value in enumerate(inputs):
        names[value.debugName()] = f"in_{place}"
    lines = [f"def {name}(self, {', '.join(f'in_{place}: Tensor' for place in range(len(inputs)))}):"]
    results: list[str] = []
    for place, node in enumerate(graph.nodes()):
        read = [names[value.debugName()] for value in node.inputs() if value.debugName() in names]
        (output,) = node.outputs()
        key = output.debugName()
        if node.kind() == "prim::Constant":
            names[key] = _literal(output.toIValue())
        elif node.kind() == "prim::GetAttr":
            names[key] = f"self.{node.s('name')}"
        elif node.kind() == "prim::ListConstruct":
            names[key] = f"[{', '.join(read)}]"
        elif node.kind() == "prim::TupleConstruct":
            results = read
        else:
            names[key] = f"v_{place}"
            lines.append(f"  v_{place} = {_call(node, read)}")
    results = results or [names[output.debugName()] for output in graph.outputs()]
    lines.append(f"  return ({', '.join([*results, *(names[value] for value in values)])})")
    return "\n".join(lines) + "\n"


def _call(node: Any, read: Sequence[str]) -> str:
    import torch

    if node.kind() == "aten::__getitem__":
        return f"{read[0]}[{read[1]}]"
    if node.kind() in _SIZES and node.output().type().kind() == "IntType":
        return _SIZES[node.kind()].format(*read)
    schema: Any = torch._C.parse_schema(node.schema())  # noqa: SLF001
    arguments = [
        f"{argument.name}={text}" if argument.kwarg_only else text
        for argument, text in zip(schema.arguments, read, strict=True)
    ]
    return f"torch.ops.{node.kind().replace('::', '.')}({', '.join(arguments)})"


def _literal(value: Any) -> str:
    return f"float({str(value)!r})" if isinstance(value, float) and not math.isfinite(value) else repr(value)


_WRITERS: dict[Format, Callable[[Path, Path, str, Sequence[str]], None]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
    "pt2": _program,
}
