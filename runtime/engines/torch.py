"""torch on the CPU, CUDA or an NPU: what its two engines share, and TorchScript."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.artifact import Artifact
from runtime.engines.base import Array, BoundGraph, Value, check_inputs, static_shape, varying_inputs
from runtime.errors import EnvironmentNotFitError
from runtime.manifest import Dtype, TensorSpec

_DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
}
# torch gives it no type.
_jit_load: Callable[..., torch.jit.ScriptModule] = torch.jit.load


class TorchEngine:
    """What the two torch engines share; values are tensors on the device.

    Parameters
    ----------
    artifact : Artifact
        Its graphs must have the engine's format.
    device : str
        `cpu`, `cuda:N` or `npu:N`.
    threads : int, optional
        Threads within an operator, for the whole process; torch's choice by default.

    """

    name: str

    def __init__(self, artifact: Artifact, device: str = "cpu", threads: int | None = None) -> None:
        _check_device(device)
        self.device = device
        self._artifact = artifact
        self._functions: dict[str, Callable[..., Any]] = {}
        if threads is not None:
            torch.set_num_threads(threads)

    def _load(self, graph: str) -> Callable[..., Any]:
        """Return a function of the graph's inputs, in the manifest's order."""
        raise NotImplementedError

    def open(self, graph: str) -> None:
        """Load `graph` unless it is loaded."""
        if graph not in self._functions:
            self._functions[graph] = self._load(graph)

    def put(self, array: Array, dtype: Dtype) -> Value:
        """Return a copy of `array` on the device as `dtype`."""
        return torch.from_numpy(np.array(array, order="C")).to(self.device, _DTYPES[dtype])

    def get(self, value: Value) -> Array:
        """Return `value` on the host; bfloat16 comes back as float32."""
        tensor: torch.Tensor = value.cpu()
        array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return array

    def zeros(self, spec: TensorSpec) -> Value:
        """Return zeros of the dtype and shape of `spec`."""
        return torch.zeros(static_shape(spec), dtype=_DTYPES[spec.dtype], device=self.device)

    def write_rows(self, cache: Value, rows: Value, at: int, count: int) -> None:
        """Copy `rows[:, :, :count]` into `cache[:, :, at : at + count]`; both [B, H, T, dh]."""
        cache[:, :, at : at + count] = rows[:, :, :count]

    def bind(self, graph: str, fixed: Mapping[str, Value]) -> BoundGraph:
        """Return a function that calls `graph` with `fixed` and the inputs given at each call."""
        self.open(graph)
        function = self._functions[graph]
        signature = self._artifact.content.graphs[graph]
        varying = varying_inputs(graph, signature.inputs, fixed)

        def call(given: Mapping[str, Value]) -> dict[str, Value]:
            check_inputs(graph, varying, given)
            values = [fixed[spec.name] if spec.name in fixed else given[spec.name] for spec in signature.inputs]
            with torch.inference_mode():
                results = function(*values)
            if isinstance(results, torch.Tensor):
                results = (results,)
            return {spec.name: result for spec, result in zip(signature.outputs, results, strict=True)}

        return call

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Call `graph` once; returns its outputs by name."""
        return self.bind(graph, inputs)({})

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        if self.device != "cpu":
            torch.get_device_module(self.device).synchronize(self.device)

    def close(self) -> None:
        """Release the graphs and the device's cached memory."""
        self._functions.clear()
        if self.device != "cpu":
            torch.get_device_module(self.device).empty_cache()


class TorchScriptEngine(TorchEngine):
    """Runs the methods of an artifact's one TorchScript file, which holds the weights once."""

    name = "torchscript"

    def __init__(self, artifact: Artifact, device: str = "cpu", threads: int | None = None) -> None:
        super().__init__(artifact, device, threads)
        self._modules: dict[str, torch.jit.ScriptModule] = {}

    def _load(self, graph: str) -> Callable[..., Any]:
        name = self._artifact.content.graphs[graph].files["torchscript"]
        if name not in self._modules:
            path = self._artifact.file(name)
            with warnings.catch_warnings(), opening(path, self.device):
                warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", DeprecationWarning)
                self._modules[name] = _jit_load(path, map_location=self.device)
        method: Callable[..., Any] = getattr(self._modules[name], graph)
        return method

    def close(self) -> None:
        """Release the module and the device's cached memory."""
        self._modules.clear()
        super().close()


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


def _check_device(device: str) -> None:
    """Refuse a device that torch does not see."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return
    if kind == "npu":
        if importlib.util.find_spec("torch_npu") is None:
            raise EnvironmentNotFitError(f"{device}: torch_npu is not installed; install it beside CANN, or use cpu")
        importlib.import_module("torch_npu")
    count = torch.get_device_module(kind).device_count()
    if int(index) >= count:
        raise EnvironmentNotFitError(
            f"{device}: expected such a device, torch {torch.__version__} sees {count} of kind {kind}; use cpu"
        )
