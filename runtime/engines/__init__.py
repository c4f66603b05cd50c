"""What runs a graph: ONNX Runtime or torch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from runtime.artifact import Artifact
from runtime.engines.base import DEFAULT_SETTINGS, Engine, EngineSettings
from runtime.engines.devices import require_torch_npu
from runtime.errors import DeviceFailedError, EnvironmentNotFitError, InputError, NoDeviceError
from runtime.manifest import Format


@dataclass(frozen=True)
class EngineEntry:
    """An engine: the graphs' format that it reads, the extra of the package that installs it, devices, and its loader.

    The loader takes the artifact, the device, the number of threads and the settings; it imports the engine's package.
    """

    format: Format
    extra: str
    devices: tuple[str, ...]
    load: Callable[[Artifact, str, int | None, EngineSettings], Engine]


def _onnxruntime(artifact: Artifact, device: str, threads: int | None, settings: EngineSettings) -> Engine:
    from runtime.engines.onnxruntime import OnnxRuntimeEngine

    if settings.capture:
        raise InputError("capture: the engine onnxruntime captures no graphs; use torchscript or pt2, or leave it out")
    return OnnxRuntimeEngine(artifact, device, threads, profile=settings.profile)


def _torchscript(artifact: Artifact, device: str, threads: int | None, settings: EngineSettings) -> Engine:
    _set_torch_environment()
    from runtime.engines.torch import TorchScriptEngine

    return TorchScriptEngine(artifact, device, threads, settings)


def _pt2(artifact: Artifact, device: str, threads: int | None, settings: EngineSettings) -> Engine:
    _set_torch_environment()
    from runtime.engines.pt2 import ExportedProgramEngine

    return ExportedProgramEngine(artifact, device, threads, settings)


def _set_torch_environment() -> None:
    """Set what is read when torch is first imported.

    Its threads sleep while they wait, not spin: spinning ones starve each other on a busy host, where whisper-pocket's
    encoder took 900 instead of 9 ms with two threads on two cores of which one was busy. And it does not load torch_npu
    by itself, which ends `import torch` where CANN is missing. Its profiler tells nobody that it starts and stops.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


ENGINES: dict[str, EngineEntry] = {
    "onnxruntime": EngineEntry("onnx", "onnxruntime", ("cpu", "cuda"), _onnxruntime),
    "torchscript": EngineEntry("torchscript", "torch", ("cpu", "cuda", "npu"), _torchscript),
    "pt2": EngineEntry("pt2", "torch", ("cpu", "cuda", "npu"), _pt2),
}


def engines_of(artifact: Artifact, device: str = "cpu") -> list[str]:
    """Return the engines that have a file for every graph and run on such devices, installed or not."""
    graphs = artifact.content.graphs.values()
    kind = device.partition(":")[0]
    return [
        name
        for name, entry in ENGINES.items()
        if kind in entry.devices and all(entry.format in graph.files for graph in graphs)
    ]


def check_device_name(device: str) -> None:
    """Check that `device` is the name of one device.

    Raises
    ------
    InputError
        It is not.

    """
    if not re.fullmatch(r"cpu|(cuda|npu):\d{1,3}", device):
        raise InputError(f"device {device!r}: expected cpu, cuda:N or npu:N, such as npu:0")


def open_engine(  # noqa: PLR0917 - all but the first are given by name
    artifact: Artifact,
    name: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    graphs: Sequence[str] | None = None,
    settings: EngineSettings = DEFAULT_SETTINGS,
) -> Engine:
    """Return the engine that runs the artifact's graphs.

    Parameters
    ----------
    artifact : Artifact
        A checked artifact.
    name : {"onnxruntime", "torchscript", "pt2"}, optional
        The engine; by default the first that has graphs in the artifact and runs on the device.
    device : str
        `cpu`, `cuda:N` or `npu:N`.
    threads : int, optional
        Threads of one operator on the CPU; the engine's own choice by default.
    graphs : sequence of str, optional
        Graphs to open at once; the others are opened when they are first called.
    settings : EngineSettings
        How the device is used.

    Raises
    ------
    InputError
        There is no such engine or device, or the artifact has no graphs in the engine's format.
    EnvironmentNotFitError
        The engine's package or the device is missing, or the engine cannot compute the artifact's dtype there.
    DeviceFailedError
        The device fails while it is opened.

    """
    check_device_name(device)
    if threads is not None and threads < 1:
        raise InputError(f"threads: expected at least 1, found {threads}")
    if name is None:
        engine = _first(artifact, engines_of(artifact, device), device, threads, settings)
    else:
        engine = _load(artifact, name, device, threads, settings)
    # A graph that cannot be captured is refused here, not in the middle of the work.
    for graph in artifact.content.graphs if settings.capture else graphs or ():
        engine.open(graph)
    return engine


def _load(artifact: Artifact, name: str, device: str, threads: int | None, settings: EngineSettings) -> Engine:
    if name not in ENGINES:
        near = get_close_matches(name, ENGINES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"engine {name!r}: expected one of {', '.join(ENGINES)}{hint}")
    entry = ENGINES[name]
    if name not in engines_of(artifact):
        there = ", ".join(engines_of(artifact)) or "no engine"
        raise InputError(
            f"{artifact.path}: has no {entry.format} graphs for engine {name}, has those of {there}; "
            f"export again with --formats {entry.format}"
        )
    if device.startswith("npu") and "npu" in entry.devices:
        from runtime.engines.worker import WorkerEngine

        require_torch_npu(device)
        return WorkerEngine(artifact, name, device, threads, settings)
    return load_engine(artifact, name, device, threads, settings)


def load_engine(artifact: Artifact, name: str, device: str, threads: int | None, settings: EngineSettings) -> Engine:
    """Open an engine that the artifact has graphs for in this process, on an NPU too; see `open_engine`."""
    entry = ENGINES[name]
    try:
        return entry.load(artifact, device, threads, settings)
    except ModuleNotFoundError as error:
        raise EnvironmentNotFitError(
            f"engine {name}: the package {error.name} is not installed; pip install 'atlasport[{entry.extra}]'"
        ) from error


def _first(
    artifact: Artifact, names: Sequence[str], device: str, threads: int | None, settings: EngineSettings
) -> Engine:
    """Return the first of the engines that runs on the device; if none does, the last one's error is raised."""
    if not names:
        raise InputError(f"{artifact.path}: no format that runs on {device} has all graphs; export the model again")
    try:
        return _load(artifact, names[0], device, threads, settings)
    except (NoDeviceError, DeviceFailedError):  # the next engine would meet the same device
        raise
    except EnvironmentNotFitError:
        if len(names) == 1:
            raise
        return _first(artifact, names[1:], device, threads, settings)
