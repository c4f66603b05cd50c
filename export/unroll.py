"""Repeats a captured graph, each time on what the time before returned: N steps of a search for the capture of one.

Capturing and translating a node takes torch 5 to 20 ms, and 32 steps have 3000 nodes; copies of them cost nothing. An
output `new_x` is the input `x` of the next time and, in the end, the graph's output. The other outputs of all times are
joined along axis 1. What depends on no repeated input is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from export.graphs import GraphDefinition

_AXIS = 1
_PREFIX = "new_"


def unroll_program(program: ExportedProgram, graph: GraphDefinition) -> None:
    """Repeat a program `graph.repeats` times, in place."""
    nodes = program.graph_module.graph
    body, output = [node for node in nodes.nodes if node.op == "call_function"], nodes.output_node()
    inputs = dict(zip(program.graph_signature.user_inputs, graph.inputs, strict=True))
    inputs_by_name = {inputs[node.name].name: node for node in nodes.nodes if node.name in inputs}
    last: list[Node] = list(output.args[0])
    times = [last]
    with nodes.inserting_before(output):
        for _ in range(graph.repeats - 1):
            renewed: dict[Node, Node] = {inputs_by_name[name]: last[place] for name, place in _carried(graph).items()}
            for node in body:
                if any(used in renewed for used in node.all_input_nodes):
                    renewed[node] = nodes.node_copy(node, lambda used, renewed=renewed: renewed.get(used, used))
            last = [renewed.get(node, node) for node in times[0]]
            times.append(last)
        carried = set(_carried(graph).values())
        results = [
            last[place] if place in carried else _concatenated([time[place] for time in times])
            for place in range(len(last))
        ]
    output.args = (tuple(results),)
    for node, spec in zip(results, program.graph_signature.output_specs, strict=True):
        spec.arg.name = node.name
    program.graph_module.recompile()


def unroll_model(model: ir.Model, graph: GraphDefinition) -> None:
    """Repeat an ONNX model `graph.repeats` times, in place."""
    body = list(model.graph)
    inputs = {spec.name: value for spec, value in zip(graph.inputs, model.graph.inputs, strict=True)}
    first = list(model.graph.outputs)
    last = first
    times = [first]
    for number in range(1, graph.repeats):
        renewed: dict[ir.Value | None, ir.Value] = {
            inputs[name]: last[place] for name, place in _carried(graph).items()
        }
        for node in body:
            if any(value in renewed for value in node.inputs):
                copy = _copied(node, [renewed.get(value, value) for value in node.inputs], f"__{number}")
                renewed |= dict(zip(node.outputs, copy.outputs, strict=True))
                model.graph.append(copy)
        last = [renewed.get(value, value) for value in first]
        times.append(last)
    carried = set(_carried(graph).values())
    for place, spec in enumerate(graph.outputs):
        if place not in carried:
            joined = ir.node("Concat", [time[place] for time in times], {"axis": _AXIS})
            model.graph.append(joined)
            last[place] = joined.outputs[0]
            last[place].type = first[place].type
        for time in times:
            if time[place].name == spec.name:
                time[place].name = f"{spec.name}__0"
    for place, spec in enumerate(graph.outputs):
        last[place].name = spec.name
    model.graph.outputs.clear()
    model.graph.outputs.extend(last)


def _carried(graph: GraphDefinition) -> dict[str, int]:
    """Return the repeated inputs by name and the places of the outputs that renew them."""
    places = {spec.name: place for place, spec in enumerate(graph.outputs)}
    return {spec.name: places[_PREFIX + spec.name] for spec in graph.inputs if _PREFIX + spec.name in places}


def _concatenated(nodes: Sequence[Node]) -> Node:
    """Return the concatenation of what the nodes return."""
    result = nodes[0].graph.call_function(torch.ops.aten.cat.default, (list(nodes), _AXIS))
    value = nodes[0].meta["val"]
    with value.fake_mode:
        result.meta["val"] = torch.cat([value] * len(nodes), dim=_AXIS)
    return result


def _copied(node: ir.Node, inputs: Sequence[ir.Value | None], suffix: str) -> ir.Node:
    """Return a node like another on other inputs; the names of its outputs get the suffix."""
    copy = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs))
    copy.name = f"{node.name}{suffix}"
    for value, original in zip(copy.outputs, node.outputs, strict=True):
        value.name, value.type, value.shape = f"{original.name}{suffix}", original.type, original.shape
    return copy
