"""What runs a graph: ONNX Runtime or torch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.errors import EnvironmentNotFitError, InputError
from runtime.manifest import Format


@dataclass(frozen=True)
class EngineEntry:
    """An engine: the graphs' format that it reads, the extra of the package that installs it, and its loader.

    The loader takes the artifact, the device and the number of threads; it imports the engine's package.
    """

    format: Format
    extra: str
    load: Callable[[Artifact, str, int | None], Engine]


def _onnxruntime(artifact: Artifact, device: str, threads: int | None) -> Engine:
    from runtime.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(artifact, device, threads)


def _torchscript(artifact: Artifact, device: str, threads: int | None) -> Engine:
    _wait_passively()
    from runtime.engines.torch import TorchScriptEngine

    return TorchScriptEngine(artifact, device, threads)


def _pt2(artifact: Artifact, device: str, threads: int | None) -> Engine:
    _wait_passively()
    from runtime.engines.pt2 import ExportedProgramEngine

    return ExportedProgramEngine(artifact, device, threads)


def _wait_passively() -> None:
    """Let torch's threads sleep while they wait, not spin; OpenMP reads this when torch is first imported.

    Spinning threads starve each other on a busy host: whisper-pocket's encoder took 900 instead of 9 ms with two
    threads on two cores of which one was busy.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


ENGINES: dict[str, EngineEntry] = {
    "onnxruntime": EngineEntry("onnx", "onnxruntime", _onnxruntime),
    "torchscript": EngineEntry("torchscript", "torch", _torchscript),
    "pt2": EngineEntry("pt2", "torch", _pt2),
}


def engines_of(artifact: Artifact) -> list[str]:
    """Return the names of the engines that have a file for every graph of the artifact, installed or not."""
    graphs = artifact.content.graphs.values()
    return [name for name, entry in ENGINES.items() if all(entry.format in graph.files for graph in graphs)]


def open_engine(
    artifact: Artifact,
    name: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    graphs: Sequence[str] | None = None,
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

    Raises
    ------
    InputError
        There is no such engine or device, or the artifact has no graphs in the engine's format.
    EnvironmentNotFitError
        The engine's package or the device is missing, or the engine cannot compute the artifact's dtype there.

    """
    if not re.fullmatch(r"cpu|(cuda|npu):\d{1,3}", device):
        raise InputError(f"device {device!r}: expected cpu, cuda:N or npu:N, such as npu:0")
    if threads is not None and threads < 1:
        raise InputError(f"threads: expected at least 1, found {threads}")
    if name is None:
        engine = _first(artifact, engines_of(artifact), device, threads)
    else:
        engine = _load(artifact, name, device, threads)
    for graph in graphs or ():
        engine.open(graph)
    return engine


def _load(artifact: Artifact, name: str, device: str, threads: int | None) -> Engine:
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
    try:
        return entry.load(artifact, device, threads)
    except ModuleNotFoundError as error:
        raise EnvironmentNotFitError(
            f"engine {name}: the package {error.name} is not installed; pip install 'atlasport[{entry.extra}]'"
        ) from error


def _first(artifact: Artifact, names: Sequence[str], device: str, threads: int | None) -> Engine:
    """Return the first of the engines that runs on the device; if none does, the last one's error is raised."""
    if not names:
        raise InputError(f"{artifact.path}: no format has all graphs; export the model again")
    try:
        return _load(artifact, names[0], device, threads)
    except EnvironmentNotFitError:
        if len(names) == 1:
            raise
        return _first(artifact, names[1:], device, threads)
