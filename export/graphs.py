"""What a graph is to the writers: a module with named and typed inputs and outputs of static or open shapes."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config

from runtime.errors import GateError
from runtime.manifest import Dtype, Format, Graph, TensorSpec, Variant

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
}
DTYPE_NAMES: dict[torch.dtype, Dtype] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def load_mapped(module: nn.Module, weights: Path) -> None:
    """Give a module on the meta device the tensors of a safetensors file, mapped: pages come in as they are used.

    Raises
    ------
    RuntimeError
        The file lacks a parameter of the module, or has another.

    """
    module.load_state_dict(load_file(weights), strict=True, assign=True)


@dataclass(frozen=True)
class GraphDefinition:
    """One function to be frozen.

    `module` takes the inputs as positional arguments and returns a tensor, or a tuple of tensors where there are
    several outputs. Its parameters have the names under which weights.safetensors stores them, and may lie on the
    meta device; a graph need not use all of them. Its buffers are small constants and have values. Graphs of one
    model share their submodules. `shortest` is the least size of each symbolic dimension of the inputs; `examples`
    are sizes to trace with where three times the least and one are not large enough to leave several frames everywhere.
    The writers repeat the module `repeats` times, see export/unroll.py.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shortest: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, int] = field(default_factory=dict)
    repeats: int = 1

    @property
    def precision(self) -> Variant:
        """The lowest precision of its inputs, outputs and weights."""
        weights = {tensor.dtype for tensor in (*self.module.parameters(), *self.module.buffers())}
        dtypes = {DTYPE_NAMES.get(dtype) for dtype in weights} | {spec.dtype for spec in (*self.inputs, *self.outputs)}
        return "bf16" if "bfloat16" in dtypes else "fp16" if "float16" in dtypes else "fp32"

    def signature(self, files: Mapping[Format, str]) -> Graph:
        """Return it as a manifest has it, with the names of its files."""
        return Graph(precision=self.precision, inputs=self.inputs, outputs=self.outputs, files=dict(files))

    @property
    def is_static(self) -> bool:
        """Whether every input has one shape."""
        return all(isinstance(size, int) for spec in self.inputs for size in spec.shape)

    def meta_inputs(self) -> tuple[torch.Tensor, ...]:
        """Return inputs of the right dtypes and shapes on the meta device, for tracing.

        Raises
        ------
        ValueError
            `shortest` lacks a symbolic dimension.

        """
        return tuple(
            torch.empty([self._example(size) for size in spec.shape], dtype=TORCH_DTYPES[spec.dtype], device="meta")
            for spec in self.inputs
        )

    def dynamic_shapes(self) -> tuple[dict[int, Dim], ...] | None:
        """Return the symbolic dimensions of each input as torch.export takes them; None where there is none."""
        if self.is_static:
            return None
        dims = {name: Dim(name, min=least) for name, least in self.shortest.items()}
        return tuple(
            {axis: dims[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in self.inputs
        )

    def _example(self, size: int | str) -> int:
        """Return a size to trace with; for a symbolic dimension one that is no edge and no round number."""
        if isinstance(size, int):
            return size
        if size not in self.shortest:
            raise ValueError(f"graph {self.name}: expected the least size of {size!r} in shortest, found none")
        return self.examples.get(size, 3 * self.shortest[size] + 1)


def exported_programs(graphs: Iterable[GraphDefinition]) -> Iterator[tuple[GraphDefinition, ExportedProgram]]:
    """Yield each graph with its program, captured on the meta device: nothing is computed and no weight is read.

    The nodes know nothing of this machine: no paths, no stack traces.
    """
    copies: dict[int, Any] = {}
    for graph in graphs:
        module = _on_meta(graph.module, copies)
        # Under torch.device, a tensor that forward creates is captured with its device, for the writers to refuse.
        # Of two open sizes torch.export makes assumptions that need not hold, see _drop_size_assertions.
        with torch.no_grad(), torch.device("meta"), _capturing(graph):
            program = torch.export.export(
                module,
                graph.meta_inputs(),
                dynamic_shapes=graph.dynamic_shapes(),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=len(graph.shortest) > 1,
            )
        for node in list(program.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:  # noqa: SLF001 - its only name
                program.graph.erase_node(node)  # it asserts the meta device
            node.meta = {key: value for key, value in node.meta.items() if key == "val"}
        _drop_size_assertions(program.graph, graph.name)
        program.graph_module.recompile()
        yield graph, program


def _drop_size_assertions(nodes: fx.Graph, name: str) -> None:
    """Erase what capturing assumed of sizes, unless it is that one of them is the example's.

    What is left is that inputs agree, which an engine checks, and that no size is 0 or 1, which makes a difference to
    the layout in memory only: torch.export takes a batch of one for a special case that it is not.

    Raises
    ------
    GateError
        The graph runs on the size that it was captured with only.

    """
    assertion = torch.ops.aten._assert_scalar.default  # noqa: SLF001 - its only name
    assertions = [node for node in nodes.nodes if node.target is assertion]
    for node in assertions:
        condition, message = node.args
        if (
            isinstance(condition, fx.Node)
            and condition.target is operator.eq
            and any(isinstance(side, int) for side in condition.args)
        ):
            raise GateError(
                f"graph {name}: expected open lengths, found one baked in ({message}); do not compute with it"
            )
        nodes.erase_node(node)
    if assertions:
        nodes.eliminate_dead_code()


def _capturing(graph: GraphDefinition) -> AbstractContextManager[Any]:
    """Capture a graph of open length for lengths that leave one frame, too, which torch.export else assumes away."""
    config: Any = _config
    return nullcontext() if graph.is_static else config.patch(backed_size_oblivious=True)


def _on_meta(module: nn.Module, copies: dict[int, Any]) -> nn.Module:
    """Return a copy with parameters and buffers on the meta device; what two modules share, their copies share."""
    for parameter in module.parameters():
        copies.setdefault(id(parameter), nn.Parameter(parameter.to("meta"), requires_grad=False))
    for buffer in module.buffers():
        copies.setdefault(id(buffer), buffer.to("meta"))
    return copy.deepcopy(module, copies)
