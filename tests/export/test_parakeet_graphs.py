"""Parakeet's graphs in every format against NeMo's own outputs and transformers' encoder."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from graph_checks import check_atc_takes, relative_l2
from parakeet_small import (
    STEPS,
    Runner,
    Small,
    Tensors,
    encoded,
    padded,
    runner,
    search,
    small,
    small_dims,
    sound,
)
from safetensors.torch import load_file

from export.families.parakeet_tdt.model import ParakeetModel
from export.families.parakeet_tdt.source import SourceParakeet
from export.fastconformer import graphs as graphs_module
from export.fastconformer import modules
from export.weights import resolve_weights
from export.writers.onnx import write_onnx
from export.writers.pt2 import write_pt2
from export.writers.torchscript import write_torchscript
from runtime.families.parakeet_tdt.settings import ParakeetDims

REFERENCE = Path(__file__).resolve().parents[1] / "parakeet_reference"
NAMES = ["t1", "t2", "t3", "t4"]
FORMATS = ["eager", "onnx", "torchscript", "pt2"]


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


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_stays_near_fp32(tmp_path: Path, dtype: torch.dtype):
    dims, limit = small_dims(), {torch.float16: 0.01, torch.bfloat16: 0.03}[dtype]
    half, kinds = small(tmp_path, dims, dtype), ["eager", "torchscript"]
    graphs = {name: half.graphs[name] for name in ("encoder", "step")}
    eager = runner(half.graphs, "eager", tmp_path)
    features = eager("frontend", **padded([sound(40_000)], 0.0))
    write_torchscript(graphs, tmp_path / "model.ts")
    if dtype is torch.float16:
        write_onnx(graphs, tmp_path / "weights.safetensors", tmp_path)
        check_atc_takes(graphs, tmp_path, never=["ScatterND"])
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


def test_onnx_graphs_are_what_atc_takes(formats: Small, pocket: tuple[ParakeetModel, Path]):
    check_atc_takes(formats.graphs, formats.folder, never=["ScatterND"])
    check_atc_takes(pocket[0].graphs(torch.float32, None), pocket[1], never=["ScatterND"])


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
