"""Parakeet's graphs in every format against NeMo's own outputs and transformers' encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from export.families.parakeet_tdt import graphs as graphs_module
from export.families.parakeet_tdt import modules
from export.families.parakeet_tdt.graphs import Constants, parakeet_graphs
from export.families.parakeet_tdt.model import ParakeetModel
from export.families.parakeet_tdt.modules import Parakeet
from export.families.parakeet_tdt.source import SourceParakeet
from export.families.parakeet_tdt.standin import RandomParakeet
from export.graphs import TORCH_DTYPES, GraphDefinition
from export.safetensors_writer import write_safetensors
from export.weights import resolve_weights
from export.writers.onnx import write_onnx
from export.writers.pt2 import write_pt2
from export.writers.torchscript import write_torchscript
from runtime.families.parakeet_tdt.settings import ParakeetDims, ParakeetSettings

REFERENCE = Path(__file__).resolve().parents[1] / "parakeet_reference"
NAMES = ["t1", "t2", "t3", "t4"]
FORMATS = ["eager", "onnx", "torchscript", "pt2"]
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


def relative_l2(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


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


@pytest.fixture(scope="module")
def pocket(parakeet_artifact: Path) -> tuple[ParakeetModel, Path]:
    """The pocket model and its artifact."""
    return ParakeetModel(resolve_weights("parakeet-pocket", None)), parakeet_artifact


@pytest.mark.parametrize("kind", ["eager", "onnx", "torchscript"])
def test_the_pocket_model_is_nemo_s(pocket: tuple[ParakeetModel, Path], kind: str):
    model, folder = pocket
    dims = ParakeetDims(**model.dims)
    run = runner(model.graphs(torch.float32, folder / "weights.safetensors"), kind, folder)
    weights = load_file(folder / "weights.safetensors")
    items = json.loads((REFERENCE / "reference.json").read_text())["items"]
    recordings, tokens = [], []
    for name in NAMES:
        nemo = {key: torch.from_numpy(array) for key, array in np.load(REFERENCE / f"{name}.npz").items()}
        recordings.append(torch.from_numpy(soundfile.read(REFERENCE / f"{name}.wav", dtype="float32")[0]))
        features, frames = encoded(run, recordings[-1:])
        count = int(features["features_len"])
        found, expected = features["features"][0, :, :count], nemo["features"][:, :count]
        assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-4
        assert frames["frames_len"].tolist() == nemo["encoder_len"].tolist() == [items[name]["encoder_frames"]]
        projected = nemo["encoder"].T @ weights["joint.enc.weight"].T + weights["joint.enc.bias"]
        length = int(frames["frames_len"])
        assert relative_l2(frames["frames"][0, :length], projected[:length]) <= 1e-5
        check_steps(run, frames["frames"], nemo, dims)
        tokens.append(list(zip(*(items[name][key] for key in ("token_ids", "frames", "durations")), strict=True)))
        assert search(run, frames, dims, (8, 32)) == tokens[-1:]
    batch = encoded(run, recordings)[1]
    assert search(run, batch, dims, (32,)) == tokens
    for row, count, recording in zip(batch["frames"], batch["frames_len"], recordings, strict=True):
        assert not row[count:].any()
        assert relative_l2(row[:count], encoded(run, [recording])[1]["frames"][0, :count]) <= 1e-5


def check_steps(run: Runner, frames: torch.Tensor, nemo: Tensors, dims: ParakeetDims) -> None:
    """Compare prediction net and joint net with NeMo's, along its search."""
    empty = torch.zeros(dims.pred_layers, 1, dims.pred_hidden)
    token, h, c = dims.blank, empty, empty
    outputs: Tensors = {}
    for frame, label, row in zip(nemo["step_frame"], nemo["step_label"], nemo["joint"], strict=True):
        if token >= 0:
            outputs = run("step", token=torch.tensor([token]), h=h, c=c, frame=frames[:, frame])
        else:
            outputs["logits"] = run("join", frame=frames[:, frame], predicted=outputs["predicted"])["logits"]
        # NeMo's are one softmax over tokens and durations.
        assert float((outputs["logits"][0].log_softmax(0) - row).abs().max()) <= 1e-4
        token = -1
        if label != dims.blank:
            token, h, c = int(label), outputs["new_h"], outputs["new_c"]


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A small model in every format."""
    made = small(tmp_path_factory.mktemp("formats"), small_dims(use_bias=1, xscaling=1))
    write_onnx(made.graphs, made.folder / "weights.safetensors", made.folder)
    write_torchscript(made.graphs, made.folder / "model.ts")
    write_pt2(made.graphs, made.folder)
    return made


def check_source(run: Runner, source: SourceParakeet, n_samples: int) -> None:
    features = run("frontend", **padded([sound(n_samples)], 0.0))
    expected = source.run("frontend", {name: array.numpy() for name, array in padded([sound(n_samples)], 0.0).items()})
    if n_samples < 320:
        assert not features["features"].any()
    else:
        assert relative_l2(features["features"], torch.from_numpy(expected["features"])) <= 1e-4
    assert features["features_len"].tolist() == expected["features_len"].tolist() == [n_samples // 160]
    frames = run("encoder", **features)
    expected = source.run("encoder", {name: tensor.numpy() for name, tensor in features.items()})
    assert relative_l2(frames["frames"], torch.from_numpy(expected["frames"])) <= 1e-5, n_samples
    assert frames["frames_len"].tolist() == expected["frames_len"].tolist()


# One frame; two; the edges of the subsampling; 10 s.
LENGTHS = [160, 320, 1279, 1280, 1440, 5000, 160_001]


@pytest.mark.parametrize("kind", FORMATS)
def test_graphs_of_any_length_are_transformers_encoder(formats: Small, kind: str):
    run = runner(formats.graphs, kind, formats.folder)
    for n_samples in LENGTHS:
        check_source(run, formats.source, n_samples)


@pytest.mark.parametrize("xscaling", [0, 1])
@pytest.mark.parametrize("use_bias", [0, 1])
def test_every_kind_of_encoder_is_transformers(tmp_path: Path, use_bias: int, xscaling: int):
    made = small(tmp_path, small_dims(use_bias, xscaling))
    for n_samples in (4000, 33_333):
        check_source(runner(made.graphs, "eager", tmp_path), made.source, n_samples)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_recording_in_a_batch_is_what_it_is_alone(formats: Small, kind: str):
    run = runner(formats.graphs, kind, formats.folder)
    recordings = [sound(count, seed) for seed, count in enumerate((20_000, 160, 48_111))]
    _, batch = encoded(run, recordings)
    for place, recording in enumerate(recordings):
        count = int(batch["frames_len"][place])
        _, alone = encoded(run, [recording], garbage=-7.0)
        assert relative_l2(batch["frames"][place, :count], alone["frames"][0, :count]) <= 1e-5
        assert not batch["frames"][place, count:].any()


@pytest.mark.parametrize("kind", FORMATS)
def test_steps_of_the_search_are_a_plain_loop_s(formats: Small, kind: str):
    """Rows in all states: at the start, at a full frame, in the middle, at and behind the end."""
    run = runner(formats.graphs, kind, formats.folder)
    dims = formats.source.dims
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(40):
        frames = 2 * torch.randn(4, 5, dims.joint_hidden, generator=generator)
        state = {name: torch.randn(2, 4, dims.pred_hidden, generator=generator) for name in "hc"}
        state["predicted"] = 2 * torch.randn(4, dims.joint_hidden, generator=generator)
        state |= {"t": torch.tensor([0, 2, 4, 5]), "count": torch.tensor([0, 2, 1, 0])}
        state["token"] = torch.randint(dims.blank, (4,), generator=generator)
        inputs = {"frames": frames, "frames_len": torch.tensor([5, 5, 5, 5]), **state}
        found = run(f"decode_{STEPS}", **inputs)
        expected = formats.source.run(f"decode_{STEPS}", {name: tensor.numpy() for name, tensor in inputs.items()})
        for name, array in expected.items():
            assert torch.allclose(found[name], torch.from_numpy(array), rtol=1e-4, atol=1e-5), name
        seen |= set(zip(found["tokens"].flatten().tolist(), found["durations"].flatten().tolist(), strict=True))
    # Blanks and tokens of every duration have been among them.
    assert {duration for token, duration in seen if token >= 0} == {0, 1, 2, 4}
    assert {duration for token, duration in seen if token < 0} == {0, 1, 2, 4}


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float16, id="fp16"), pytest.param(torch.bfloat16, id="bf16", marks=pytest.mark.slow)]
)
def test_half_precision_stays_near_fp32(tmp_path: Path, dtype: torch.dtype):
    dims, limit = small_dims(), {torch.float16: 0.01, torch.bfloat16: 0.03}[dtype]
    half, kinds = small(tmp_path, dims, dtype), ["eager", "torchscript"]
    graphs = {name: half.graphs[name] for name in ("encoder", "step")}
    eager = runner(half.graphs, "eager", tmp_path)
    features = eager("frontend", **padded([sound(40_000)], 0.0))
    write_torchscript(graphs, tmp_path / "model.ts")
    if dtype is torch.float16:
        write_onnx(graphs, tmp_path / "weights.safetensors", tmp_path)
        check_atc_takes(graphs, tmp_path)
        kinds.append("onnx")
    for kind in kinds:
        run = runner(graphs, kind, tmp_path)
        frames = run("encoder", **features)
        expected = half.source.run("encoder", {name: tensor.numpy() for name, tensor in features.items()})
        assert relative_l2(frames["frames"], torch.from_numpy(expected["frames"])) <= limit
        states = torch.randn(2, 2, 1, dims.pred_hidden, generator=torch.Generator().manual_seed(1))
        step = {"token": torch.tensor([3]), "h": states[0], "c": states[1], "frame": frames["frames"][:, 2].float()}
        expected = half.source.run("step", {name: tensor.numpy() for name, tensor in step.items()})
        cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in step.items()}
        for name, tensor in run("step", **cast).items():
            assert relative_l2(tensor, torch.from_numpy(expected[name])) <= limit, name


def check_atc_takes(graphs: dict[str, GraphDefinition], folder: Path) -> None:
    for name, graph in graphs.items():
        model = onnx.load(folder / f"{name}.onnx", load_external_data=False)
        onnx.checker.check_model(folder / f"{name}.onnx", full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        assert not model.functions
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"Loop", "Scan", "If", "STFT", "DFT", "LSTM", "GRU", "ScatterND", "SequenceAt"}
        assert {node.domain for node in model.graph.node} == {""}
        for values, specs in ((model.graph.input, graph.inputs), (model.graph.output, graph.outputs)):
            for value, spec in zip(values, specs, strict=True):
                dims = value.type.tensor_type.shape.dim
                assert tuple(dim.dim_param or dim.dim_value for dim in dims) == spec.shape
        inline = sum(
            tensor.ByteSize() for tensor in model.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL
        )
        assert inline < (5_000_000 if name == "frontend" else 20_000)


def test_onnx_graphs_are_what_atc_takes(formats: Small, pocket: tuple[ParakeetModel, Path]):
    check_atc_takes(formats.graphs, formats.folder)
    check_atc_takes(pocket[0].graphs(torch.float32, None), pocket[1])


def test_torchscript_runs_on_another_device(formats: Small):
    """The meta device stands for any: a constant of the CPU would meet the inputs there."""
    loaded = torch.jit.load(formats.folder / "model.ts", map_location="meta")
    features, count = loaded.frontend(torch.empty(2, 32_000, device="meta"), torch.empty(2, device="meta").long())
    frames, frames_len = loaded.encoder(features, count)
    assert frames.shape == (2, 26, 16)
    state = [torch.empty(2, device="meta").long() for _ in range(3)]
    state += [torch.empty(shape, device="meta") for shape in ((2, 16), (2, 2, 12), (2, 2, 12))]
    assert getattr(loaded, f"decode_{STEPS}")(frames, frames_len, *state)[0].shape == (2, STEPS)


_FAULTS = {
    "relative shift by one": (modules, "relative_shift", lambda original, x: original(x.roll(1, dims=3))),
    "mask by one": (modules, "live_frames", lambda original, x, lengths: original(x, lengths + 1)),
    "normalisation with padding": (
        graphs_module.LogMel,
        "_normalized",
        lambda original, x, count: original(x, torch.full_like(count, x.shape[2])),
    ),
}


@pytest.mark.parametrize("name", _FAULTS)
def test_a_fault_shows(formats: Small, monkeypatch: pytest.MonkeyPatch, name: str):
    place, attribute, fault = _FAULTS[name]
    original = getattr(place, attribute)
    patched = partial(fault, original)
    monkeypatch.setattr(place, attribute, staticmethod(patched) if isinstance(place, type) else patched)
    run = runner(formats.graphs, "eager", formats.folder)
    with pytest.raises(AssertionError):
        # 128 frames: one more would be another frame of the encoder.
        check_source(run, formats.source, 20_480)
