"""Small random Parakeets, and their graphs run by name in one format or another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from safetensors.torch import load_file

from export.families.parakeet_tdt.graphs import parakeet_graphs
from export.families.parakeet_tdt.modules import Parakeet
from export.families.parakeet_tdt.source import SourceParakeet
from export.families.parakeet_tdt.standin import RandomParakeet
from export.fastconformer.graphs import Constants
from export.graphs import TORCH_DTYPES, GraphDefinition
from export.safetensors_writer import write_safetensors
from runtime.families.parakeet_tdt.settings import ParakeetDims, ParakeetSettings

# The graphs of the small models repeat a step this often.
STEPS = 3

Tensors = dict[str, torch.Tensor]
Runner = Callable[..., Tensors]


def small_dims(use_bias: int = 0, xscaling: int = 0) -> ParakeetDims:
    return ParakeetDims(
        n_mels=16,
        n_layers=1,
        d_model=24,
        n_heads=2,
        d_ff=48,
        conv_kernel=5,
        subsampling_factor=8,
        subsampling_channels=4,
        use_bias=use_bias,
        xscaling=xscaling,
        pred_hidden=12,
        pred_layers=2,
        joint_hidden=16,
        n_vocab=11,
        n_durations=4,
    )


@dataclass(frozen=True)
class Small:
    """A small random model: its graphs, the parameters that they were given, and the source with the same ones."""

    graphs: dict[str, GraphDefinition]
    source: SourceParakeet
    folder: Path


def small(folder: Path, dims: ParakeetDims, dtype: torch.dtype = torch.float32) -> Small:
    checkpoint = RandomParakeet(dims)
    settings = ParakeetSettings(durations=(0, 1, 2, 4), max_symbols=3, decode_steps=(STEPS,))
    checkpoint.settings = settings
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    # Both are what greedy search emits.
    tensors["joint.joint_net.2.bias"][dims.blank] = 2.0
    write_safetensors(folder / "fp32.safetensors", checkpoint.tensors, tensors.__getitem__)
    source = SourceParakeet(checkpoint, folder / "fp32.safetensors")
    cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    infos = {name: type(info)(dtype, info.shape) for name, info in checkpoint.tensors.items()}
    write_safetensors(folder / "weights.safetensors", infos, cast.__getitem__)
    with torch.device("meta"):
        model = Parakeet(dims).to(dtype)
    model.load_state_dict(cast, strict=True, assign=True)
    constants = Constants(checkpoint.window, checkpoint.filters)
    return Small(parakeet_graphs(model, constants, dims, checkpoint.frontend, settings, dtype=dtype), source, folder)


def runner(graphs: dict[str, GraphDefinition], kind: str, folder: Path) -> Runner:
    """Return a function that runs a graph by name in one format and checks what it returns against its signature."""
    script = torch.jit.load(folder / "model.ts") if kind == "torchscript" else None
    opened: dict[str, Any] = {}

    def function(name: str) -> Any:
        if kind == "torchscript":
            return getattr(script, name)
        if kind == "pt2":
            module = torch.export.load(folder / f"{name}.pt2").module()
            weights = load_file(folder / "weights.safetensors")
            module.load_state_dict({key: weights[key] for key in module.state_dict()}, assign=True)
            return module
        if kind == "onnx":
            session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
            names = [spec.name for spec in graphs[name].inputs]
            return lambda *values: tuple(
                torch.from_numpy(array)
                for array in session.run(None, {key: value.numpy() for key, value in zip(names, values, strict=True)})
            )
        return lambda *values: repeated(graphs[name], values)

    def run(name: str, **inputs: torch.Tensor) -> Tensors:
        graph = graphs[name]
        if name not in opened:
            opened[name] = function(name)
        with torch.no_grad():
            outputs = opened[name](*(inputs[spec.name] for spec in graph.inputs))
        sizes: dict[int | str, int] = {}
        results = outputs if isinstance(outputs, tuple) else (outputs,)
        for spec, tensor in zip(graph.outputs, results, strict=True):
            assert tensor.dtype == TORCH_DTYPES[spec.dtype], spec.name
            for size, found in zip(spec.shape, tensor.shape, strict=True):
                assert (size if isinstance(size, int) else sizes.setdefault(size, found)) == found, spec.name
        return {spec.name: tensor for spec, tensor in zip(graph.outputs, results, strict=True)}

    return run


def repeated(graph: GraphDefinition, values: tuple[torch.Tensor, ...]) -> Any:
    """Return what a graph's module returns, called as often as the writers repeat it."""
    if graph.repeats == 1:
        return graph.module(*values)
    fixed, state, columns = values[:2], values[2:], []
    for _ in range(graph.repeats):
        outputs = graph.module(*fixed, *state)
        columns.append(outputs[: -len(state)])
        state = outputs[-len(state) :]
    return (*(torch.cat(column, dim=1) for column in zip(*columns, strict=True)), *state)


def sound(n_samples: int, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    time = np.arange(n_samples) / 16000
    audio = 0.2 * np.sin(2 * np.pi * (300 * time + 900 * time**2 % 4000)) * (np.sin(5 * time) > 0)
    return torch.from_numpy((audio + 0.01 * generator.standard_normal(n_samples)).astype(np.float32))


def padded(recordings: list[torch.Tensor], garbage: float) -> Tensors:
    length = torch.tensor([len(recording) for recording in recordings])
    audio = torch.full((len(recordings), int(length.max()) + 55), garbage)
    for row, recording in zip(audio, recordings, strict=True):
        row[: len(recording)] = recording
    return {"audio": audio, "length": length}


def encoded(run: Runner, recordings: list[torch.Tensor], garbage: float = 1e3) -> tuple[Tensors, Tensors]:
    features = run("frontend", **padded(recordings, garbage))
    for row, count in zip(features["features"], features["features_len"], strict=True):
        assert not row[:, count:].any()
        row[:, count:] = garbage
    return features, run("encoder", **features)


def search(run: Runner, frames: Tensors, dims: ParakeetDims, steps: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    """Return (token, frame, duration) of each recording by the graphs decode_N of `steps` in turn."""
    batch, dtype = len(frames["frames"]), frames["frames"].dtype
    empty = torch.zeros(dims.pred_layers, batch, dims.pred_hidden, dtype=dtype)
    token, zero = torch.full((batch,), dims.blank), torch.zeros(batch, dtype=torch.int64)
    first = run("step", token=token, h=empty, c=empty, frame=frames["frames"][:, 0])
    state = {"t": zero, "token": token, "count": zero, "predicted": first["predicted"]}
    state |= {"h": first["new_h"], "c": first["new_c"]}
    found: list[list[tuple[int, ...]]] = [[] for _ in range(batch)]
    calls = 0
    while bool((state["t"] < frames["frames_len"]).any()):
        outputs = run(f"decode_{steps[calls % len(steps)]}", **frames, **state)
        state = {name: outputs[f"new_{name}"] for name in state}
        calls += 1
        assert calls < 1000
        for row, *columns in zip(found, outputs["tokens"], outputs["at"], outputs["durations"], strict=True):
            row += [step for step in zip(*(column.tolist() for column in columns), strict=True) if step[0] >= 0]
    return found
