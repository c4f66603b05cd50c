"""ONNX Runtime: the reference engine on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from runtime.artifact import Artifact
from runtime.engines.base import Array, BoundGraph, Value, check_inputs, static_shape, varying_inputs
from runtime.engines.probe import HostProbe
from runtime.engines.profile import Profile, profile_from_sessions
from runtime.errors import EnvironmentNotFitError
from runtime.manifest import Dtype, TensorSpec

# Graphs that run once per window keep the weights as the file's mapped pages. Prepacked, each prompt length has a
# private copy of the decoder: at whisper-tiny's size 112 MB instead of 4 MB for 9 instead of 13 ms, where the encoder
# takes 280 ms. The step graph's copy stays: 5.3 instead of 8.5 ms a token. (ONNX Runtime shares prepacked weights
# between sessions in its C interface only.) Granite Speech's encoder at full width takes 1.03 times as long with the
# file's pages; in float32 its copy would have 1.9 GB.
_UNPACKED = ("prefill", "encode_project")


class OnnxRuntimeEngine:
    """Runs ONNX graphs; values are numpy arrays on the host, whatever the device.

    Each graph has its own session, opened at its first call.

    Parameters
    ----------
    artifact : Artifact
        Its graphs must have the format `onnx`.
    device : str
        `cpu`, or `cuda:N`, where inputs and outputs are copied at every call.
    threads : int, optional
        Threads within an operator; ONNX Runtime's choice by default.
    lean : bool
        Memory goes before speed: no copy of weights that is laid out for speed, all stay the file's pages, and no arena
        that keeps what a call took (golden outputs of kotoba-whisper-v2.0: 4.0 instead of 4.9 GB, 3 % slower).
    profile : bool
        Record what the sessions do.
    weights : mapping of str to array, optional
        The parameters by name, for all sessions to read. Without them each session maps the file's pages once more,
        which are then counted once more: the six decoder graphs of whisper-base 186 MB each.

    """

    name = "onnxruntime"
    probe = HostProbe()

    def __init__(
        self,
        artifact: Artifact,
        device: str = "cpu",
        threads: int | None = None,
        *,
        lean: bool = False,
        profile: bool = False,
        weights: Mapping[str, Array] | None = None,
    ) -> None:
        self.device = device
        self._artifact = artifact
        self._provider, self._provider_options = _provider(device)
        self._threads = threads
        self._lean = lean
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._weights = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in (weights or {}).items()
        }
        # Where sessions write their profiles.
        self._profiles = tempfile.TemporaryDirectory(prefix="atlasport-profile-") if profile else None
        if device == "cpu" and artifact.content.variant == "bf16":
            raise EnvironmentNotFitError(
                f"{artifact.path}: bf16 graphs need the engine torchscript or pt2: "
                "ONNX Runtime has no bf16 kernels for the CPU"
            )

    def open(self, graph: str) -> None:
        """Open the session of `graph` unless it is open."""
        if graph in self._sessions:
            return
        path = self._artifact.file(self._artifact.content.graphs[graph].files["onnx"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.log_severity_level = 4
        # Spinning threads starve each other on a busy host: 53 instead of 28 ms a step with two threads.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = not self._lean
        if self._profiles is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._profiles.name) / graph)
        prepack = not self._lean and not graph.startswith(_UNPACKED)
        options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
        for name, value in self._weights.items():
            options.add_initializer(name, value)
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=[(self._provider, self._provider_options)], enable_fallback=0
            )
        except Exception as error:  # its exceptions share no base class
            reason = str(error).splitlines()[0]
            raise EnvironmentNotFitError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot open it on {self.device}: {reason}"
            ) from error
        # A provider that fails to start is dropped with a warning, and the graph runs on the CPU.
        if session.get_providers()[0] != self._provider:
            raise EnvironmentNotFitError(
                f"{self.device}: expected ONNX Runtime's {self._provider}, found {session.get_providers()[0]}; "
                "check the driver's and the package's version"
            )
        self._sessions[graph] = session

    def put(self, array: Array, dtype: Dtype) -> Value:
        """Return a contiguous copy of `array` as `dtype`."""
        return np.array(array, dtype=dtype, order="C")

    def get(self, value: Value) -> Array:
        """Return `value`, which is on the host."""
        return np.asarray(value)

    def zeros(self, spec: TensorSpec) -> Value:
        """Return zeros of the dtype and shape of `spec`."""
        return np.zeros(static_shape(spec), dtype=spec.dtype)

    def write_rows(self, cache: Value, rows: Value, at: int, count: int, start: int = 0) -> None:
        """Copy `rows[:, :, start : start + count]` into `cache[:, :, at : at + count]`; both [B, H, T, dh]."""
        cache[:, :, at : at + count] = rows[:, :, start : start + count]

    def bind(self, graph: str, fixed: Mapping[str, Value]) -> BoundGraph:
        """Return a function that calls `graph` with `fixed` and the inputs given at each call.

        All inputs and outputs are bound to memory once; a call copies what it is given into the bound arrays and
        returns the bound outputs, which the next call overwrites.
        """
        self.open(graph)
        session = self._sessions[graph]
        signature = self._artifact.content.graphs[graph]
        varying = varying_inputs(graph, signature.inputs, fixed)
        if any(isinstance(size, str) for spec in (*signature.inputs, *signature.outputs) for size in spec.shape):
            return self._unbound(graph, varying, fixed)
        inputs = {spec.name: self.zeros(spec) for spec in varying} | dict(fixed)
        if not all(array.flags.c_contiguous for array in inputs.values()):
            raise ValueError(f"{graph}: expected contiguous arrays; ONNX Runtime would bind a copy of another")
        outputs = {spec.name: np.empty(static_shape(spec), dtype=spec.dtype) for spec in signature.outputs}
        binding = session.io_binding()
        _bind_inputs(binding, inputs)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

        def call(given: Mapping[str, Value]) -> dict[str, Value]:
            check_inputs(graph, varying, given)
            for name, value in given.items():
                np.copyto(inputs[name], value)
            if self.device != "cpu":  # binding an input is what copies it to the device
                _bind_inputs(binding, inputs)
            session.run_with_iobinding(binding)
            return dict(outputs)

        return call

    def _unbound(self, graph: str, varying: Sequence[TensorSpec], fixed: Mapping[str, Value]) -> BoundGraph:
        """Return a call of a graph of dynamic length, whose outputs ONNX Runtime allocates."""
        session = self._sessions[graph]
        names = [spec.name for spec in self._artifact.content.graphs[graph].outputs]

        def call(given: Mapping[str, Value]) -> dict[str, Value]:
            check_inputs(graph, varying, given)
            return dict(zip(names, session.run(names, {**fixed, **given}), strict=True))

        return call

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Call `graph` once; returns its outputs by name, in memory of their own."""
        self.open(graph)
        signature = self._artifact.content.graphs[graph]
        check_inputs(graph, signature.inputs, inputs)
        names = [spec.name for spec in signature.outputs]
        return dict(zip(names, self._sessions[graph].run(names, dict(inputs)), strict=True))

    def synchronize(self) -> None:
        """Return at once: a call ends when its outputs are on the host."""

    def take_profile(self) -> Profile:
        """Return what the sessions recorded; on CUDA as the host saw it."""
        starts = {graph: session.get_profiling_start_time_ns() for graph, session in self._sessions.items()}
        files = {graph: Path(session.end_profiling()) for graph, session in self._sessions.items()}
        profile = profile_from_sessions(files, starts)
        if self._profiles is not None:
            self._profiles.cleanup()
        return profile

    def close(self) -> None:
        """Release the sessions."""
        self._sessions.clear()
        if self._profiles is not None:
            self._profiles.cleanup()


def _bind_inputs(binding: onnxruntime.IOBinding, inputs: Mapping[str, Array]) -> None:
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)


def _provider(device: str) -> tuple[str, dict[str, str]]:
    """Return the execution provider of a device and its options."""
    kind, _, index = device.partition(":")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(kind)
    available: Sequence[str] = onnxruntime.get_available_providers()
    if provider is None:
        raise EnvironmentNotFitError(f"{device}: ONNX Runtime runs on cpu and cuda:N; use engine torchscript or pt2")
    if provider not in available:
        raise EnvironmentNotFitError(
            f"{device}: onnxruntime {onnxruntime.__version__} has no {provider}; install onnxruntime-gpu or use cpu"
        )
    return provider, {"device_id": index} if index else {}
