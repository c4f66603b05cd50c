"""torch on the CPU, CUDA or an NPU: what its two engines share, and TorchScript."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.artifact import Artifact
from runtime.engines.base import (
    DEFAULT_SETTINGS,
    Array,
    BoundGraph,
    EngineSettings,
    Value,
    check_inputs,
    static_shape,
    varying_inputs,
)
from runtime.engines.capture import CapturedGraph
from runtime.engines.devices import Device, open_torch_device
from runtime.engines.probe import DeviceFacts, DeviceMemory, Mark, Work
from runtime.engines.profile import Profile
from runtime.engines.torch_profile import TorchRecorder
from runtime.errors import EnvironmentNotFitError, InputError
from runtime.manifest import Dtype, TensorSpec, Variant

_DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
}
_COMPUTED_IN: dict[Variant, Dtype] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# A matrix of so many rows for each column is a vocabulary; feed-forward layers and gates have four.
_TALL = 5
# torch gives it no type.
_jit_load: Callable[..., torch.jit.ScriptModule] = torch.jit.load


class TorchProbe:
    """What a torch engine tells of its device."""

    def __init__(self, device: Device, on_host: Sequence[str]) -> None:
        self._device = device
        self._on_host = {"on_host": ", ".join(on_host)} if on_host else {}
        self.called: defaultdict[str, set[tuple[tuple[int, ...], ...]]] = defaultdict(set)
        # Tensors that were copied from the device for graphs on the host.
        self.fetched = 0
        self._work: defaultdict[str, Work] = defaultdict(Work)
        # What was put since the last call, and to what the rest counts.
        self._coming = self._current = Work()

    @property
    def facts(self) -> DeviceFacts:
        """What the graphs run on, and the names of those that run on the host."""
        return replace(self._device.facts, flags={**self._device.facts.flags, **self._on_host})

    def memory(self) -> DeviceMemory | None:
        """Return what is held on the device."""
        return self._device.memory()

    def free_memory(self) -> int | None:
        """Return about how many bytes more the device has for this process."""
        return self._device.free_memory()

    def shapes(self) -> dict[str, int]:
        """Return by graph how many different sets of input shapes it was called with."""
        return {graph: len(shapes) for graph, shapes in self.called.items()}

    def operators(self) -> int:
        """Return how many operators all runs so far were made of, and what was put by one; views are none."""
        return sum(work.operators for work in (*self._work.values(), self._coming))

    def put_waits(self) -> int:
        """Return for how many of the arrays put so far the host had to wait, and for how many that it fetched."""
        return self._device.put_waits + self.fetched

    def work(self) -> dict[str, Work]:
        """Return what was asked of the device so far, by graph."""
        return {graph: replace(work) for graph, work in self._work.items()}

    def count_put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy of a host tensor on the device, counted to the next call."""
        waits, operators = self._device.put_waits, self._device.put_operators
        copy = self._device.to_device(tensor)
        made = self._device.put_operators - operators
        self._coming.add(Work(0, made, made, 1 - made, self._device.put_waits - waits))
        return copy

    def count_call(self, graph: str, operators: int, launches: int) -> None:
        """Count a call of a graph, with what was put for it."""
        self._current = self._work[graph]
        self._current.add(self._coming)
        self._current.add(Work(1, operators, launches))
        self._coming = Work()

    def count(self, *, launches: int = 0, copies: int = 0, syncs: int = 0) -> None:
        """Count what else is asked for, to the last call."""
        self._current.add(Work(0, 0, launches, copies, syncs))

    def mark(self) -> Mark:
        """Return a mark behind the work given so far."""
        return self._device.mark()

    def seconds(self, start: Mark, end: Mark) -> float:
        """Return the seconds between two marks."""
        return self._device.seconds(start, end)


class TorchEngine:
    """What the two torch engines share; values are tensors on the device.

    A device may compute no products of float32 (a 310P): then graphs that are float32 from end to end, such as front
    ends, run on the host.

    With `settings.capture`, graphs of fixed shapes are captured at their first call; the others run as they are. What
    is bound has one shape: with a cache of open length, a graph is captured once for each cache.

    Parameters
    ----------
    artifact : Artifact
        Its graphs must have the engine's format.
    device : str
        `cpu`, `cuda:N` or `npu:N`. After an error an NPU gives wrong results without a word (see
        runtime/engines/worker.py): use one in this process only where the process ends at the first error.
    threads : int, optional
        Threads within an operator, for the whole process; torch's choice by default.
    settings : EngineSettings
        How the device is used.

    Raises
    ------
    EnvironmentNotFitError
        The device computes no products of the artifact's dtype.

    """

    name: str

    def __init__(
        self,
        artifact: Artifact,
        device: str = "cpu",
        threads: int | None = None,
        settings: EngineSettings = DEFAULT_SETTINGS,
    ) -> None:
        if settings.capture and device == "cpu":
            raise InputError("capture: cpu has no graphs to capture; use cuda:N or npu:N, or leave it out")
        self._device = open_torch_device(device, settings)
        self.device = device
        _check_variant(artifact, self._device)
        graphs = artifact.content.graphs.items() if "float32" in self._device.lacks else ()
        self._on_host = [name for name, graph in graphs if not graph.is_below_fp32]
        self.probe = TorchProbe(self._device, self._on_host)
        self._artifact = artifact
        self._functions: dict[str, Callable[..., Any]] = {}
        self._operator_counts: dict[str, int] = {}
        # What several graphs are loaded from: modules by file, or weights by name.
        self._shared: dict[str, Any] = {}
        self._capture = settings.capture
        self._captured: dict[str, CapturedGraph] = {}
        if threads is not None:
            torch.set_num_threads(threads)
        self._recorder = TorchRecorder(device) if settings.profile else None

    def _load(self, graph: str, device: str) -> Callable[..., Any]:
        """Return a function of the graph's inputs, in the manifest's order, that computes on `device`."""
        raise NotImplementedError

    def _operators(self, graph: str) -> list[torch.FunctionSchema]:
        """Return the schemas of the aten operators of a loaded graph, in its order."""
        raise NotImplementedError

    def open(self, graph: str) -> None:
        """Load `graph` unless it is loaded."""
        if graph not in self._functions:
            on_host = graph in self._on_host
            self._functions[graph] = self._load(graph, "cpu" if on_host else self.device)
            self._operator_counts[graph] = 0 if on_host else sum(map(_computes, self._operators(graph)))

    def put(self, array: Array, dtype: Dtype) -> Value:
        """Return a copy of `array` on the device as `dtype`."""
        return self.probe.count_put(torch.from_numpy(np.array(array, order="C")).to(_DTYPES[dtype]))

    def get(self, value: Value) -> Array:
        """Return `value` on the host; bfloat16 comes back as float32."""
        self.probe.count(copies=1, syncs=1)
        tensor = self._device.to_host(value)
        array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return array

    def zeros(self, spec: TensorSpec) -> Value:
        """Return zeros of the dtype and shape of `spec`."""
        self.probe.count(launches=1)
        return torch.zeros(static_shape(spec), dtype=_DTYPES[spec.dtype], device=self.device)

    def write_rows(self, cache: Value, rows: Value, at: int, count: int, start: int = 0) -> None:
        """Copy `rows[:, :, start : start + count]` into `cache[:, :, at : at + count]`; both [B, H, T, dh]."""
        self.probe.count(launches=1)
        cache[:, :, at : at + count] = rows[:, :, start : start + count]

    def bind(self, graph: str, fixed: Mapping[str, Value]) -> BoundGraph:
        """Return a function that calls `graph` with `fixed` and the inputs given at each call."""
        self.open(graph)
        signature = self._artifact.content.graphs[graph]
        varying = varying_inputs(graph, signature.inputs, fixed)
        names = [spec.name for spec in signature.inputs]

        def call(given: Mapping[str, Value]) -> dict[str, Value]:
            check_inputs(graph, varying, given)
            values = {name: fixed[name] if name in fixed else given[name] for name in names}
            self.probe.called[graph].add(tuple(tuple(value.shape) for value in values.values()))
            with nullcontext() if self._recorder is None else self._recorder.call(graph):
                results = self._call(graph, values, frozenset(fixed))
            return {spec.name: result for spec, result in zip(signature.outputs, results, strict=True)}

        return call

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Call `graph` once; returns its outputs by name."""
        outputs = self.bind(graph, {})(inputs)
        if not self._capture:
            return outputs
        self.probe.count(launches=len(outputs))
        with torch.inference_mode():
            return {name: value.clone() for name, value in outputs.items()}

    def _call(self, graph: str, values: Mapping[str, torch.Tensor], fixed: frozenset[str]) -> Sequence[torch.Tensor]:
        """Run `graph` on its inputs by name, in the manifest's order; `fixed` may stay where they are."""
        function = self._functions[graph]

        def eager(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with torch.inference_mode():
                results = function(*inputs)
            return (results,) if isinstance(results, torch.Tensor) else tuple(results)

        operators = self._operator_counts[graph]
        if graph in self._on_host:
            self.probe.count_call(graph, operators, 0)
            self.probe.fetched += len(values)
            self.probe.count(copies=len(values), syncs=len(values))
            results = eager(*map(self._device.to_host, values.values()))
            return [self.probe.count_put(result) for result in results]
        inputs = self._artifact.content.graphs[graph].inputs
        given = (spec for spec in inputs if spec.name not in fixed)
        if not self._capture or any(isinstance(size, str) for spec in given for size in spec.shape):
            self.probe.count_call(graph, operators, operators)
            return eager(*values.values())
        captured = self._captured.get(graph)
        if captured is None or not captured.fits(values, fixed):
            captured = self._captured[graph] = CapturedGraph(graph, self._device, eager, values, fixed)
        copied = captured.copied
        replayed = captured(values)
        self.probe.count_call(graph, operators, 1 + captured.copied - copied)
        return replayed

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        self.probe.count(syncs=1)
        self._device.synchronize()

    def take_profile(self) -> Profile:
        """Return what was recorded; of an NPU what the host did."""
        if self._recorder is None:
            raise ValueError("expected an engine that was opened with `profile`")
        return self._recorder.take()

    def close(self) -> None:
        """Release the graphs and the device's cached memory."""
        self._captured.clear()
        self._functions.clear()
        self._shared.clear()
        self._device.release()


class TorchScriptEngine(TorchEngine):
    """Runs the methods of an artifact's one TorchScript file, which holds the weights once."""

    name = "torchscript"

    def _load(self, graph: str, device: str) -> Callable[..., Any]:
        name = self._artifact.content.graphs[graph].files["torchscript"]
        loaded = f"{name} on {device}"
        if loaded not in self._shared:
            path = self._artifact.file(name)
            with warnings.catch_warnings(), opening(path, device):
                warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", DeprecationWarning)
                self._shared[loaded] = _jit_load(path, map_location=device)
        module = self._shared[loaded]
        if device == "cpu":
            _transpose_tall(module, getattr(module, graph).inlined_graph)
        method: Callable[..., Any] = getattr(module, graph)
        return method

    def _operators(self, graph: str) -> list[torch.FunctionSchema]:
        method: Any = self._functions[graph]
        nodes = (node for node in _nodes(method.inlined_graph) if node.kind().startswith("aten::"))
        return [torch._C.parse_schema(node.schema()) for node in nodes]  # noqa: SLF001 - no other way


def _check_variant(artifact: Artifact, device: Device) -> None:
    """Refuse an artifact in a dtype of which the device computes no products."""
    content = artifact.content
    if (dtype := _COMPUTED_IN[content.variant]) in device.lacks:
        soc = device.facts.versions.get("soc", device.name)
        raise EnvironmentNotFitError(
            f"{artifact.path}: {device.name} ({soc}) computes no products of {dtype}; use the fp16 one: "
            f"atlasport export {content.model} --precision fp16"
        )


def _computes(schema: torch.FunctionSchema) -> bool:
    """Tell whether an operator makes a new tensor; others look at one in another way, or ask for its size."""
    return any(
        "Tensor" in str(result.type) and (result.alias_info is None or result.alias_info.is_write)
        for result in schema.returns
    )


def _transpose_tall(module: Any, graph: Any) -> None:
    """Lay out the vocabularies that a graph multiplies with so that their transposes are contiguous.

    The product of one row in float32 with 51864 tokens of whisper-tiny.en takes 4.0 instead of 8.6 ms then, of two rows
    8 instead of 22. There is one copy, which an embedding reads too: 228 rows in 0.7 ms.
    """
    for node in _nodes(graph):
        weight = list(node.inputs())[1].node() if node.kind() == "aten::linear" else None
        if weight is None or weight.kind() != "prim::GetAttr":
            continue
        matrix: torch.Tensor = getattr(module, weight.s("name"))
        rows, columns = matrix.shape
        if matrix.dtype == torch.float32 and matrix.is_contiguous() and rows >= _TALL * columns:
            setattr(module, weight.s("name"), matrix.t().contiguous().t())


def _nodes(block: Any) -> Iterator[Any]:
    """Yield the nodes of a TorchScript block and of the blocks within."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


@contextmanager
def opening(path: Path, device: str) -> Iterator[None]:
    """Turn torch's errors while a checked file is opened into one line."""
    try:
        yield
    except Exception as error:  # torch.export raises what its archive reader raises
        reason = str(error).strip().partition("\n")[0]
        raise EnvironmentNotFitError(
            f"{path}: torch {torch.__version__} cannot open it on {device}: {reason}"
        ) from error
