"""What one artifact needs of a device, told from its manifest alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from pydantic import ValidationError

from runtime.engines import ENGINES
from runtime.errors import DamagedArtifactError
from runtime.families import FAMILIES, family_named
from runtime.findings import WorkingMemory
from runtime.manifest import Content, Dtype, Graph, TensorSpec

_ITEM_BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}


@dataclass(frozen=True)
class ArtifactNeed:
    """What one artifact needs of the device.

    `weights_bytes` is the size of the weights in the format of the first engine that fits, `state_bytes` that of the
    inputs and outputs (caches among them) of the graph with the most; the device needs both and a workspace of its
    own. `shapes` counts the distinct shapes by graph, 0 where a dimension is symbolic. `memory` is what its family
    takes beside the weights, of which `state_bytes` counts the least; None where that does not grow with a recording.
    """

    path: str
    model: str
    variant: str
    engines: tuple[str, ...]
    weights_bytes: int
    state_bytes: int
    shapes: dict[str, int]
    memory: WorkingMemory | None = None


def artifact_need(path: Path, content: Content, kind: str) -> ArtifactNeed:
    """Return what the artifact with this manifest needs on a device of `kind` (`cpu`, `cuda`, `npu`).

    Raises
    ------
    DamagedArtifactError
        The manifest does not describe a network of its family.

    """
    graphs = content.graphs
    engines = [name for name in engines_on(kind) if all(ENGINES[name].format in g.files for g in graphs.values())]
    if kind == "cpu" and content.variant == "bf16":
        engines = [name for name in engines if name != "onnxruntime"]
    memory = _memory(content)
    state = max((_state_bytes(graph) for graph in graphs.values()), default=0)
    return ArtifactNeed(
        path=str(path),
        model=content.model,
        variant=content.variant,
        engines=tuple(engines),
        weights_bytes=_weights_bytes(content, engines[0]) if engines else 0,
        state_bytes=max(state, memory.least_bytes if memory else 0),
        shapes={name: 0 if _symbolic(graph) else 1 for name, graph in graphs.items()},
        memory=memory,
    )


def _item_bytes(content: Content) -> int:
    return 4 if content.variant == "fp32" else 2


def _memory(content: Content) -> WorkingMemory | None:
    memory = family_named(content.family).memory if content.family in FAMILIES else None
    try:
        return memory and memory(content, 4 if content.variant == "fp32" else 2)
    except ValidationError as error:
        raise DamagedArtifactError(f"manifest: {error.errors()[0]['msg']}; export the model again") from error


def engines_on(kind: str) -> list[str]:
    """Return the engines that run on a kind of device, in the order in which they are tried."""
    return [name for name, entry in ENGINES.items() if kind in entry.devices]


def _weights_bytes(content: Content, engine: str) -> int:
    names = {graph.files[ENGINES[engine].format] for graph in content.graphs.values()}
    if engine != "torchscript":
        # Graphs of the other formats point into one file of weights.
        names |= {"weights.safetensors"} & content.files.keys()
    return sum(content.files[name].size for name in names)


def _tensors(graph: Graph) -> tuple[TensorSpec, ...]:
    return (*graph.inputs, *graph.outputs)


def _symbolic(graph: Graph) -> bool:
    return any(isinstance(size, str) for spec in _tensors(graph) for size in spec.shape)


def _state_bytes(graph: Graph) -> int:
    """Return the bytes of inputs and outputs; a symbolic dimension counts as 1, so this is the least."""
    sizes = (prod(size for size in spec.shape if isinstance(size, int)) for spec in _tensors(graph))
    return sum(size * _ITEM_BYTES[spec.dtype] for size, spec in zip(sizes, _tensors(graph), strict=True))
