"""Cnn8Rnn's graphs in every format and at many lengths against torch's own layers, unfolded."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graph_checks import check_atc_takes, relative_l2
from safetensors.torch import load_file
from sed_checkpoints import N_CLASSES, N_HIDDEN, sed_state, write_sed_checkpoint
from torch import nn

from export.families.cnn8rnn.graphs import STEPS, LogMel
from export.families.cnn8rnn.model import Cnn8RnnModel
from export.families.cnn8rnn.source import SourceCnn8Rnn
from export.graphs import TORCH_DTYPES, GraphDefinition, exported_programs
from export.pipeline import write_weights
from export.weights import resolve_weights
from export.writers.onnx import write_onnx
from export.writers.pt2 import write_pt2
from export.writers.torchscript import write_torchscript
from runtime.manifest import TensorSpec

POCKET = Path(__file__).resolve().parents[2] / "pocket" / "sed-pocket"
TRAINING_MODEL = POCKET.parents[2] / "shared" / "pocket" / "sed-training" / "model.py"
RATE = 32000
# 4 frames, which is one score; the lengths that issue 3 names.
LENGTHS = [960, 9600, 96000, 319_680, 320_000, 320_320, 2_080_000]
FORMATS = ["eager", "onnx", "torchscript", "pt2"]
HALVES = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float16, torch.bfloat16)]

Runner = Callable[..., Any]


@dataclass(frozen=True)
class Export:
    """One checkpoint's graphs in every format."""

    model: Cnn8RnnModel
    graphs: dict[str, GraphDefinition]
    folder: Path

    @property
    def source(self) -> SourceCnn8Rnn:
        source = self.model.source(self.folder)
        assert isinstance(source, SourceCnn8Rnn)
        return source


def export(checkpoint: Path, dtype: torch.dtype, folder: Path) -> Export:
    model = Cnn8RnnModel(resolve_weights("any", str(checkpoint)))
    weights = folder / "weights.safetensors"
    write_weights(model, dtype, weights)
    graphs = model.graphs(dtype, weights)
    write_onnx(model.graphs(dtype, None), weights, folder)
    write_torchscript(graphs, folder / "model.ts")
    write_pt2(graphs, folder)
    return Export(model, graphs, folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sed_checkpoint(tmp_path_factory.mktemp("checkpoint"), sed_state())


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export(checkpoint, torch.float32, tmp_path_factory.mktemp("fp32"))


@pytest.fixture(scope="module", params=HALVES, ids=["fp16", "bf16"])
def exported_half(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export(checkpoint, request.param, tmp_path_factory.mktemp("half"))


def runner(exported: Export, kind: str, name: str) -> Runner:
    """Return a function that runs a graph in one format and checks dtype and shape of what it returns."""
    graph = exported.graphs[name]
    if kind == "onnx":
        session = onnxruntime.InferenceSession(exported.folder / f"{name}.onnx", providers=["CPUExecutionProvider"])

        def function(*inputs: torch.Tensor) -> Any:
            feeds = {spec.name: tensor.numpy() for spec, tensor in zip(graph.inputs, inputs, strict=True)}
            outputs = tuple(map(torch.from_numpy, session.run(None, feeds)))
            return outputs if len(outputs) > 1 else outputs[0]
    elif kind == "torchscript":
        function = getattr(torch.jit.load(exported.folder / "model.ts"), name)
    elif kind == "pt2":
        function = torch.export.load(exported.folder / f"{name}.pt2").module()
        weights = load_file(exported.folder / "weights.safetensors")
        function.load_state_dict({key: weights[key] for key in function.state_dict()}, assign=True)
    else:
        function = graph.module

    def run(*inputs: torch.Tensor) -> Any:
        with torch.inference_mode():
            found = function(*inputs)
        for output, spec in zip(found if isinstance(found, (tuple, list)) else [found], graph.outputs, strict=True):
            assert output.dtype == TORCH_DTYPES[spec.dtype]
            assert len(output.shape) == len(spec.shape)
        return found

    return run


def body(exported: Export, kind: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from log-mel frames to logits: the recurrence is called until all steps are done."""
    gates, recurrence, head = (runner(exported, kind, name) for name in ("gates", "recurrence", "head"))

    def run(logmel: torch.Tensor) -> torch.Tensor:
        steps = gates(logmel)
        h, states = torch.zeros(2, 1, steps.shape[3] // 3, dtype=steps.dtype), []
        padded = nn.functional.pad(steps, (0, 0, 0, -steps.shape[2] % STEPS))
        for part in padded.split(STEPS, dim=2):
            some, h = recurrence(part.contiguous(), h)
            states.append(some)
        return head(torch.cat(states, dim=2)[:, :, : steps.shape[2]].contiguous())

    return run


def sounds(n_samples: int, seed: int = 0) -> torch.Tensor:
    """Return [1, n] f32: chirps and clicks over noise, loud and faint."""
    generator = np.random.default_rng(seed)
    time = np.arange(n_samples) / RATE
    audio = 0.2 * np.sin(2 * np.pi * (300 * time + 900 * time**2 % 4000)) * (np.sin(5 * time) > 0)
    audio += 0.3 * (generator.random(n_samples) < 1e-3)
    audio += 0.003 * generator.standard_normal(n_samples)
    return torch.from_numpy(audio.astype(np.float32))[None]


@pytest.mark.parametrize("kind", FORMATS)
def test_graphs_are_the_source_at_every_length(exported: Export, kind: str):
    frontend, network = runner(exported, kind, "frontend"), body(exported, kind)
    for n_samples in LENGTHS:
        audio = sounds(n_samples)
        logmel = frontend(audio)
        assert logmel.shape == (1, 64, n_samples // 320 + 1)
        assert relative_l2(logmel, exported.source.logmel(audio)) <= 1e-5, n_samples
        logits = network(logmel)
        assert logits.shape == (1, logmel.shape[2] // 4, N_CLASSES)
        expected = torch.from_numpy(exported.source.logits(logmel[0].numpy()))[None]
        assert relative_l2(logits, expected) <= 1e-5, n_samples


@pytest.mark.parametrize("kind", FORMATS)
def test_a_call_of_the_recurrence_goes_on_from_any_states(exported: Export, kind: str):
    recurrence = runner(exported, kind, "recurrence")
    generator = torch.Generator().manual_seed(5)
    gates = torch.randn(1, 2, STEPS, 3 * N_HIDDEN, generator=generator)
    h = torch.rand(2, 1, N_HIDDEN, generator=generator) * 2 - 1
    expected = exported.source.run("recurrence", {"gates": gates.numpy(), "h": h.numpy()})
    for found, name in zip(recurrence(gates, h), ("states", "new_h"), strict=True):
        assert relative_l2(found, torch.from_numpy(expected[name])) <= 1e-5
    # That they count, and which direction each is of, must show.
    for other in (torch.zeros_like(h), h.flip(0)):
        assert relative_l2(recurrence(gates, other)[0], torch.from_numpy(expected["states"])) > 1e-2


@pytest.mark.parametrize("kind", ["eager", "onnx", "torchscript", "pt2"])
def test_half_precision_graphs_stay_near_fp32(exported_half: Export, kind: str):
    dtype = TORCH_DTYPES[exported_half.graphs["recurrence"].inputs[1].dtype]
    if dtype is torch.bfloat16 and kind == "onnx":
        # When this changes, the runtime may stop refusing bf16 ONNX on the CPU.
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented, match="Could not find"):
            runner(exported_half, kind, "gates")
        return
    frontend, network = runner(exported_half, kind, "frontend"), body(exported_half, kind)
    limit = 0.01 if dtype is torch.float16 else 0.03
    for n_samples in (960, 9600, 96000):
        audio = sounds(n_samples)
        logmel = frontend(audio)
        assert relative_l2(logmel, exported_half.source.logmel(audio)) <= 1e-5, "the front-end is always float32"
        expected = torch.from_numpy(exported_half.source.logits(logmel[0].numpy()))[None]
        assert relative_l2(network(logmel), expected) <= limit, n_samples


@pytest.fixture(scope="module")
def training_network() -> nn.Module:
    """sed-pocket in the script that trained it, a third implementation."""
    if not TRAINING_MODEL.is_file():
        pytest.skip(f"{TRAINING_MODEL} is not on this machine: it is no part of the repository")
    spec = importlib.util.spec_from_file_location("sed_training_model", TRAINING_MODEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.Cnn8Rnn(classes_num=8, channels=(8, 16, 32, 64), fc=64, hidden=32).eval()
    network.load_state_dict(load_file(POCKET / "model.safetensors"), strict=True)
    return network


@pytest.fixture(scope="module")
def pocket(training_network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """sed-pocket in every format; only where the script is there to compare with."""
    assert training_network is not None
    return export(POCKET, torch.float32, tmp_path_factory.mktemp("pocket"))


@pytest.mark.parametrize("kind", FORMATS)
def test_graphs_are_the_training_script_s_network(training_network: Any, pocket: Export, kind: str):
    frontend, network = runner(pocket, kind, "frontend"), body(pocket, kind)
    for n_samples in LENGTHS:
        audio = sounds(n_samples, seed=n_samples)
        with torch.inference_mode():
            logmel = training_network.logmel(audio)
            logits = training_network.logits(logmel)
        assert relative_l2(frontend(audio), logmel) <= 1e-5, n_samples
        assert relative_l2(network(logmel), logits) <= 1e-5, n_samples


def test_no_graph_holds_a_recurrent_operator(exported: Export):
    """An NPU has none for float32, and a capture cannot hold one."""
    script = torch.jit.load(exported.folder / "model.ts")
    for name in exported.graphs:
        assert "gru" not in getattr(script, name).code
        operators = {str(n.target) for n in torch.export.load(exported.folder / f"{name}.pt2").graph.nodes}
        assert not [operator for operator in operators if "gru" in operator]
        model = onnx.load(exported.folder / f"{name}.onnx", load_external_data=False)
        assert not {node.op_type for node in model.graph.node} & {"GRU", "Split", "Where", "Less"}


def test_a_step_of_the_recurrence_is_ten_operators(exported: Export):
    """Of both directions at once; slices, which are views to torch, beside them."""
    nodes = onnx.load(exported.folder / "recurrence.onnx", load_external_data=False).graph.node
    counts = Counter(node.op_type for node in nodes)
    assert {kind: counts[kind] for kind in ("MatMul", "Sigmoid", "Tanh", "Sub", "Mul", "Add")} == {
        **dict.fromkeys(("MatMul", "Sigmoid", "Tanh", "Sub"), STEPS),
        "Mul": 2 * STEPS,
        "Add": 4 * STEPS,
    }
    assert counts["Slice"] == 6 * STEPS + 2


class Baked(nn.Module):
    """Adds to its input what fits the traced length only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.new_ones(x.shape).reshape(1, 13)


def test_a_graph_whose_length_is_not_open_is_not_captured():
    spec = TensorSpec(name="x", dtype="float32", shape=(1, "n"))
    graph = GraphDefinition("baked", Baked().eval(), (spec,), (spec,), {"n": 4})
    with pytest.raises(Exception, match="Constraints violated"):
        list(exported_programs([graph]))


def check_onnx_graphs(exported: Export) -> None:
    # The front-end's kernels, where the recurrence cuts, the normalisation.
    inline_of = {"frontend": 5_000_000, "recurrence": 30_000}
    check_atc_takes(exported.graphs, exported.folder, never=["Shape"], inline=2_000, inline_of=inline_of)


def test_onnx_graphs_are_what_atc_takes(exported: Export):
    check_onnx_graphs(exported)


def test_half_precision_onnx_graphs_are_what_atc_takes(exported_half: Export):
    check_onnx_graphs(exported_half)


def test_torchscript_runs_on_another_device(exported: Export):
    """The meta device stands for any: a constant of the CPU would meet the inputs there."""
    loaded = torch.jit.load(exported.folder / "model.ts", map_location="meta")
    logmel = loaded.frontend(torch.empty(1, 32000, device="meta"))
    assert logmel.device.type == "meta"
    assert loaded.gates(logmel).shape == (1, 2, 25, 3 * N_HIDDEN)
    gates, h = (torch.empty(shape, device="meta") for shape in ((1, 2, STEPS, 3 * N_HIDDEN), (2, 1, N_HIDDEN)))
    states, _ = loaded.recurrence(gates, h)
    assert loaded.head(states).shape == (1, STEPS, N_CLASSES)


def test_two_writes_of_exported_programs_are_equal(exported: Export, tmp_path: Path):
    """Those of the other formats are compared as whole exports of two processes, in test_sed_pipeline.py."""
    for file in write_pt2(exported.graphs, tmp_path).values():
        data = (tmp_path / file).read_bytes()
        assert data == (exported.folder / file).read_bytes()
        assert str(tmp_path).encode() not in data
        assert b"site-packages" not in data


def numpy_logmel(audio: np.ndarray, window: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Return dB [n_mels, n_frames] in float64, by numpy's Fourier transform of one frame after the other."""
    padded = np.pad(audio.astype(np.float64), 512, mode="reflect")
    frames = [padded[start : start + 1024] for start in range(0, len(audio) + 1, 320)]
    power = [np.abs(np.fft.rfft(frame * window)) ** 2 @ filters for frame in frames]
    return 10 * np.log10(np.maximum(np.array(power), 1e-10)).T


def signals() -> Iterator[tuple[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    one = np.zeros(4000, np.float32)
    one[0] = 1.0
    yield "one sample", one
    yield "silence", np.zeros(4000, np.float32)
    yield "noise", generator.normal(0, 0.1, 33_333).astype(np.float32)
    yield "sounds", sounds(96_000)[0].numpy()
    yield "shortest", generator.normal(0, 0.5, 960).astype(np.float32)
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(32_000) / RATE) + generator.normal(0, 1e-3, 32_000)
    yield "tone", tone.astype(np.float32)


# Of the largest value, 100 dB: the structure gate.
LIMIT = 1e-4


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", FORMATS)
def test_frontend_is_torch_stft_and_numpy(exported: Export, kind: str):
    state = sed_state()
    window = state["melspec_extractor.spectrogram.window"].double().numpy()
    filters = state["melspec_extractor.mel_scale.fb"].double().numpy()
    frontend = runner(exported, kind, "frontend")
    for name, audio in signals():
        found = frontend(torch.from_numpy(audio)[None])[0].numpy()
        assert largest_error(found, numpy_logmel(audio, window, filters)) <= LIMIT, name
        source = exported.source.logmel(torch.from_numpy(audio)[None])[0].numpy()
        assert largest_error(found, source) <= LIMIT, name


@pytest.mark.parametrize("name", ["noise", "sounds", "tone"])
def test_a_symmetric_window_exceeds_the_tolerance(name: str):
    """The fault that the check above is for."""
    state = sed_state()
    window, filters = state["melspec_extractor.spectrogram.window"], state["melspec_extractor.mel_scale.fb"]
    audio = dict(signals())[name]
    expected = numpy_logmel(audio, window.double().numpy(), filters.double().numpy())
    for tried, fails in ((window, False), (torch.hann_window(1024, periodic=False), True)):
        logmel = LogMel(tried, filters, 320)(torch.from_numpy(audio)[None])[0].numpy()
        assert (largest_error(logmel, expected) > LIMIT) is fails
