"""A frozen graph as a list of nodes, whatever its format, and what two formats of one graph have in common.

The formats are written from one captured program. What they share for certain are the parameters: the operators that
read one (a linear layer, a convolution, a norm, an embedding) stand in both, in one order. In graphs of static shapes
the nodes keep the program's names too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal

import onnx

# Of the names of two formats: the last operator's is the output's in one of them.
_AGREED = 0.6
Site = tuple[str, int, Literal["input", "output"]]


@dataclass(frozen=True)
class Node:
    """An operator with the names of the values that it reads and writes."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class FrozenGraph:
    """Nodes in an order in which they can run; `parameters` gives values that are parameters their names."""

    inputs: tuple[str, ...]
    parameters: Mapping[str, str]
    nodes: Sequence[Node]
    constants: frozenset[str] = frozenset()

    @cached_property
    def sites(self) -> dict[Site, str]:
        """The value that goes into, and that which comes out of, the n-th operator that reads a parameter."""
        known, constants = dict(self.parameters), set(self.constants)
        counts: Counter[str] = Counter()
        found: dict[Site, str] = {}
        for node in self.nodes:
            read = [known[value] for value in node.inputs if value in known]
            data = [value for value in node.inputs if value not in known and value not in constants]
            if not data:  # a parameter in another form, or a constant
                known.update(dict.fromkeys(node.outputs, read[0]) if read else {})
                constants.update(() if read else node.outputs)
            elif read:
                found[read[0], counts[read[0]], "input"] = data[0]
                found[read[0], counts[read[0]], "output"] = node.outputs[0]
                counts[read[0]] += 1
        return found

    @cached_property
    def producers(self) -> dict[str, int]:
        """By value the place of the node that writes it."""
        return {value: place for place, node in enumerate(self.nodes) for value in node.outputs}

    @cached_property
    def modules(self) -> list[str]:
        """By node the path of the module that it is part of, found from the parameters around it."""
        own = {value: _module(parameter) for (parameter, _, kind), value in self.sites.items() if kind == "output"}
        before: list[str] = []
        for node in self.nodes:
            # The nearest: of a sum that is the branch, not the residual stream.
            above = sorted(self.producers[value] for value in node.inputs if value in self.producers)
            before.append(own.get(node.outputs[0], next((before[at] for at in reversed(above) if before[at]), "")))
        behind = [""] * len(self.nodes)
        for place in reversed(range(len(self.nodes))):
            node = self.nodes[place]
            behind[place] = own.get(node.outputs[0], behind[place])
            for value in node.inputs:
                if value in self.producers:
                    behind[self.producers[value]] = behind[place]
        return [_common(one, other) for one, other in zip(before, behind, strict=True)]


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _common(one: str, other: str) -> str:
    """Return the module that two are part of; where there is only one, that."""
    if not one or not other:
        return one or other
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(one.split("."), other.split("."), strict=False))
    return ".".join(name for name, _ in shared)


def onnx_graph(model: onnx.ModelProto, parameters: frozenset[str]) -> FrozenGraph:
    """Return an ONNX graph; initializers that are none of the artifact's parameters are constants."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    nodes = [Node(n.op_type, tuple(filter(None, n.input)), tuple(filter(None, n.output))) for n in model.graph.node]
    return FrozenGraph(
        inputs=tuple(value.name for value in model.graph.input if value.name not in initializers),
        parameters={name: name for name in initializers & parameters},
        nodes=nodes,
        constants=frozenset(initializers - parameters),
    )


def torchscript_graph(graph: Any, parameters: frozenset[str]) -> FrozenGraph:
    """Return a method of a TorchScript file; `graph` is a torch._C.Graph."""
    by_attribute = {name.replace(".", "__"): name for name in parameters}
    _self, *inputs = (value.debugName() for value in graph.inputs())
    read: dict[str, str] = {}
    constants: set[str] = set()
    nodes: list[Node] = []
    for node in graph.nodes():
        outputs = tuple(value.debugName() for value in node.outputs())
        if node.kind() == "prim::GetAttr":
            name = node.s("name")
            if name in by_attribute:
                read[outputs[0]] = by_attribute[name]
            else:
                constants.add(outputs[0])
        elif node.kind() == "prim::Constant":
            constants.add(outputs[0])
        elif node.kind() != "prim::TupleConstruct":
            nodes.append(Node(node.kind(), tuple(value.debugName() for value in node.inputs()), outputs))
    return FrozenGraph(tuple(inputs), read, nodes, frozenset(constants))


def program_graph(program: Any, parameters: frozenset[str]) -> FrozenGraph:
    """Return an exported program; `program` is a torch.export.ExportedProgram."""
    signature = program.graph_signature
    read = {name: target for name, target in signature.inputs_to_parameters.items() if target in parameters}
    inputs = tuple(signature.user_inputs)
    held = {node.name for node in program.graph.nodes if node.op == "placeholder"} - read.keys() - set(inputs)
    nodes = [
        Node(str(node.target), tuple(value.name for value in node.all_input_nodes), (node.name,))
        for node in program.graph.nodes
        if node.op == "call_function"
    ]
    return FrozenGraph(inputs, read, nodes, frozenset(held))


def in_common(reference: FrozenGraph, candidate: FrozenGraph, *, static: bool) -> dict[str, str]:
    """Return by value of `reference`, in its order, the value of `candidate` that should be the same.

    Where the operators that read parameters have the same names in both, as in a graph of `static` shapes, all others
    of one name are the same too; elsewhere what goes into an operator that reads a parameter stands for them.
    """
    sites = {
        site: (reference.sites[site], candidate.sites[site]) for site in reference.sites if site in candidate.sites
    }
    results = dict(pair for (*_, kind), pair in sites.items() if kind == "output")
    names = {_plain(value): value for node in candidate.nodes for value in node.outputs}
    same = [_named(reference, one) == _plain(other) for one, other in results.items()]
    shared = {value: names[value] for value in reference.producers if value in names}
    if static and sum(same) >= _AGREED * len(same) and len(shared) >= _AGREED * len(names):
        pairs = shared | results
    else:
        pairs = dict(sites.values())
    return {
        value: pairs[value]
        for node in reference.nodes
        for value in node.outputs
        if value in pairs and pairs[value] in candidate.producers
    }


def _plain(value: str) -> str:
    """Return a value's name without what TorchScript, and its writer, put around it: `_linear_1.1` is `linear_1`."""
    return re.sub(r"\.\d+$", "", value).removeprefix("_")


def _named(graph: FrozenGraph, value: str) -> str:
    """Return a value's name in the program: a linear layer is a Gemm between two reshapes, the second has the name."""
    node = graph.nodes[graph.producers[value]]
    if node.operator != "Gemm":
        return value
    readers = [reader.outputs[0] for reader in graph.nodes if value in reader.inputs and reader.operator == "Reshape"]
    return readers[0] if readers else value
