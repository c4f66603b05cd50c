"""One artifact through every engine; what is expected is computed by hand in toy_artifact."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from toy_artifact import DIM, ROWS, VOCABULARY, expected_encoder, expected_logits, seal, write_toy

from export.graphs import GraphDefinition
from export.writers.torchscript import write_torchscript
from runtime.artifact import Artifact, open_artifact
from runtime.engines import ENGINES, engines_of, open_engine
from runtime.engines.base import Engine
from runtime.engines.onnxruntime import OnnxRuntimeEngine
from runtime.errors import EnvironmentNotFitError, ExitCode, InputError
from runtime.manifest import MANIFEST_NAME, TensorSpec

RNG = np.random.default_rng(1)
X = RNG.standard_normal((1, 3, DIM)).astype(np.float32)
CROSS = RNG.standard_normal((1, 2, 3, DIM)).astype(np.float32)
LIMIT = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("toys")
    return {dtype: open_artifact(write_toy(folder / dtype, dtype)) for dtype in LIMIT}


@pytest.fixture
def toy(toys: dict[str, Artifact]) -> Artifact:
    return toys["float32"]


Opened: TypeAlias = tuple[Engine, str]


COMBINATIONS = [(name, dtype) for name in ENGINES for dtype in LIMIT if (name, dtype) != ("onnxruntime", "bfloat16")]


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def opened(request: pytest.FixtureRequest, toys: dict[str, Artifact]):
    name, dtype = request.param
    engine = open_engine(toys[dtype], name, threads=1)
    yield engine, dtype
    engine.close()


def token(engine: Engine, number: int):
    return engine.put(np.array([[number]]), "int64")


def test_run(opened: Opened):
    engine, dtype = opened
    outputs = engine.run("encoder", {"x": engine.put(X, dtype)})
    assert list(outputs) == ["hidden", "cross"]
    hidden, cross = engine.get(outputs["hidden"]), engine.get(outputs["cross"])
    assert hidden.dtype == (np.float16 if dtype == "float16" else np.float32)
    np.testing.assert_allclose(hidden, expected_encoder(X), atol=LIMIT[dtype])
    np.testing.assert_allclose(cross, np.stack((hidden, 2 * hidden), 1), atol=LIMIT[dtype])


def test_decode_with_a_cache(opened: Opened):
    """Rows that are written between calls are seen; garbage in rows at and after the position is not."""
    engine, dtype = opened
    spec = TensorSpec(name="self_k", dtype=dtype, shape=(1, 2, ROWS, DIM))
    cache, cross = engine.zeros(spec), engine.put(CROSS, dtype)
    assert not engine.get(cache).any()
    engine.write_rows(cache, engine.put(np.full((1, 2, ROWS, DIM), 1e4), dtype), 0, ROWS)
    mirror = np.zeros((1, 2, ROWS, DIM), np.float32)
    step = engine.bind("step", {"cross": cross, "self_k": cache})
    for pos, number in enumerate([3, 0, 6, 6]):
        outputs = step({"tokens": token(engine, number), "pos": engine.put(np.array([pos]), "int64")})
        logits = engine.get(outputs["logits"])
        assert logits.dtype == np.float32
        assert logits.shape == (1, 1, VOCABULARY)
        expected = expected_logits(number, pos, CROSS, mirror)
        np.testing.assert_allclose(logits, expected, atol=10 * LIMIT[dtype])
        engine.write_rows(cache, outputs["new_self_k"], pos, 1)
        mirror[:, :, pos] = engine.get(outputs["new_self_k"])[:, :, 0]
        assert mirror[:, :, pos].any()
    np.testing.assert_array_equal(engine.get(cache)[:, :, :4], mirror[:, :, :4])
    engine.synchronize()


def test_write_rows_writes_only_count_rows(opened: Opened):
    engine, dtype = opened
    cache = engine.zeros(TensorSpec(name="c", dtype=dtype, shape=(1, 2, ROWS, DIM)))
    engine.write_rows(cache, engine.put(np.ones((1, 2, 4, DIM)), dtype), 1, 2)
    assert engine.get(cache)[0, :, :, 0].tolist() == [[0, 1, 1, 0, 0, 0]] * 2


def test_put_copies_and_casts(opened: Opened):
    engine, dtype = opened
    given = X.astype(np.float64).transpose(2, 1, 0)  # not contiguous
    value = engine.put(given, dtype)
    before = given.copy()
    given[:] = 0
    np.testing.assert_allclose(engine.get(value), before, atol=10 * LIMIT[dtype])


def test_results_of_run_stay(opened: Opened):
    engine, dtype = opened
    first = engine.run("encoder", {"x": engine.put(X, dtype)})["hidden"]
    kept = engine.get(first).copy()
    engine.run("encoder", {"x": engine.put(-X, dtype)})
    np.testing.assert_array_equal(engine.get(first), kept)


def test_inputs_are_checked(opened: Opened):
    """A traced graph of another length would run and be wrong."""
    engine, dtype = opened
    longer = np.zeros((1, 4, DIM))
    other = "float16" if dtype == "float32" else "float32"
    for inputs in ({}, {"y": X}, {"x": X, "y": X}):
        with pytest.raises(ValueError, match=r"encoder: expected .*inputs.*\['x'\], found"):
            engine.run("encoder", {name: engine.put(value, dtype) for name, value in inputs.items()})
    for array, kind in ((longer, dtype), (X[0], dtype), (X, other)):
        with pytest.raises(ValueError, match="encoder: x: expected"):
            engine.run("encoder", {"x": engine.put(array, kind)})
    step = engine.bind("step", {"cross": engine.put(CROSS, dtype)})
    with pytest.raises(ValueError, match="step: expected the inputs"):
        step({"tokens": token(engine, 1), "pos": engine.put(np.array([0]), "int64")})


def test_works_after_close(opened: Opened):
    engine, dtype = opened
    engine.close()
    outputs = engine.run("encoder", {"x": engine.put(X, dtype)})
    np.testing.assert_allclose(engine.get(outputs["hidden"]), expected_encoder(X), atol=LIMIT[dtype])


def test_onnxruntime_wants_contiguous_fixed_values(toy: Artifact):
    engine = open_engine(toy, "onnxruntime")
    with pytest.raises(ValueError, match="contiguous"):
        engine.bind("encoder", {"x": np.zeros((1, DIM, 3), np.float32).transpose(0, 2, 1)})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sessions_of_onnxruntime_share_the_weights_that_they_are_given(tmp_path: Path):
    artifact = open_artifact(write_toy(tmp_path / "toy"))
    file = str(artifact.file("weights.safetensors"))

    def mappings() -> int:
        return Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").count(file)

    weights = {name: tensor.numpy() for name, tensor in load_file(file).items()}
    before = mappings()
    engine = OnnxRuntimeEngine(artifact, threads=1, lean=True, weights=weights)
    for graph in artifact.content.graphs:
        engine.open(graph)
    assert mappings() == before
    np.testing.assert_allclose(engine.run("encoder", {"x": X})["hidden"], expected_encoder(X), atol=1e-6)
    # Without them a session maps the file itself.
    alone = OnnxRuntimeEngine(artifact, threads=1, lean=True)
    alone.open("encoder")
    assert mappings() > before
    alone.close()


def test_the_default_is_the_first_engine_that_fits(toys: dict[str, Artifact]):
    assert open_engine(toys["float32"]).name == "onnxruntime"
    assert open_engine(toys["bfloat16"]).name == "torchscript"
    with pytest.raises(EnvironmentNotFitError, match=r"^cuda:97: .*torch"):
        open_engine(toys["float32"], device="cuda:97")


def test_pt2_graphs_share_their_weights(toy: Artifact):
    """Not a copy each: what one graph's parameter holds is the file's mapped page."""
    engine = open_engine(toy, "pt2", graphs=["encoder", "step"])
    first, second = (dict(engine._functions[name].state_dict()) for name in ("encoder", "step"))
    shared = engine._shared["cpu"]
    assert {**first, **second}.keys() == shared.keys()
    for name, value in [*first.items(), *second.items()]:
        assert value.data_ptr() == shared[name].data_ptr()


@pytest.mark.parametrize("name", ["torchscript", "pt2"])
def test_torch_threads_sleep_while_they_wait(toy: Artifact, name: str):
    """As OpenMP itself reports when torch loads it; spinning threads took 900 instead of 9 ms on a busy host."""
    code = (
        "import sys; from pathlib import Path\n"
        "from runtime.artifact import open_artifact; from runtime.engines import open_engine\n"
        "open_engine(open_artifact(Path(sys.argv[1])), sys.argv[2])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(toy.path), name],
        env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "GOMP_SPINCOUNT = '0'" in done.stderr


@pytest.mark.parametrize("name", ENGINES)
def test_opening_says_nothing(toy: Artifact, name: str, capfd: pytest.CaptureFixture[str]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_engine(toy, name, graphs=["encoder", "step"]).close()
    assert capfd.readouterr() == ("", "")


def test_threads(toy: Artifact):
    before = torch.get_num_threads()
    try:
        open_engine(toy, "torchscript", threads=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


class TestRefusals:
    def refused(self, kind: type[Exception], artifact: Artifact, *arguments: str, **named: Any) -> str:
        with pytest.raises(kind) as caught:
            open_engine(artifact, *arguments, **named)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_unknown_engine(self, toy: Artifact):
        assert "did you mean onnxruntime?" in self.refused(InputError, toy, "onnxruntme")

    @pytest.mark.parametrize("device", ["", "gpu", "npu", "npu:x", "cpu:0", "CPU", "npu:-1", "cuda:9999999999999"])
    def test_not_a_device(self, toy: Artifact, device: str):
        assert "expected cpu, cuda:N or npu:N" in self.refused(InputError, toy, "torchscript", device)

    def test_threads(self, toy: Artifact):
        assert "at least 1" in self.refused(InputError, toy, "torchscript", threads=0)

    @pytest.mark.skipif(importlib.util.find_spec("torch_npu") is not None, reason="torch_npu is installed")
    @pytest.mark.parametrize("name", ["torchscript", "pt2"])
    def test_npu_without_torch_npu(self, toy: Artifact, name: str):
        message = self.refused(EnvironmentNotFitError, toy, name, "npu:0")
        assert message.startswith("npu:0: torch_npu is not installed")
        assert EnvironmentNotFitError.exit_code == ExitCode.ENVIRONMENT == 3

    @pytest.mark.parametrize("name", ENGINES)
    def test_cuda_device_that_is_not_there(self, toy: Artifact, name: str):
        assert self.refused(EnvironmentNotFitError, toy, name, "cuda:97").startswith("cuda:97: ")

    def test_onnxruntime_on_an_npu(self, toy: Artifact):
        assert "torchscript" in self.refused(EnvironmentNotFitError, toy, "onnxruntime", "npu:0")

    def test_onnxruntime_bf16(self, toys: dict[str, Artifact]):
        message = self.refused(EnvironmentNotFitError, toys["bfloat16"], "onnxruntime")
        assert "bf16 graphs need the engine torchscript" in message

    def test_format_that_is_not_there(self, toy: Artifact, tmp_path: Path):
        folder = tmp_path / "toy"
        shutil.copytree(toy.path, folder)
        (folder / MANIFEST_NAME).unlink()
        graphs = {
            name: graph.model_copy(update={"files": {"onnx": graph.files["onnx"]}})
            for name, graph in toy.content.graphs.items()
        }
        seal(folder, graphs)
        artifact = open_artifact(folder)
        assert engines_of(artifact) == ["onnxruntime"]
        assert engines_of(toy) == list(ENGINES)
        message = self.refused(InputError, artifact, "pt2")
        assert "has no pt2 graphs" in message
        assert "--formats pt2" in message

    @pytest.mark.parametrize(
        ("name", "file"), [("onnxruntime", "step.onnx"), ("torchscript", "model.ts"), ("pt2", "step.pt2")]
    )
    @pytest.mark.parametrize("data", [b"", b"not a graph\n" * 9])
    def test_file_that_the_engine_cannot_read(self, toy: Artifact, tmp_path: Path, name: str, file: str, data: bytes):
        folder = tmp_path / "toy"
        shutil.copytree(toy.path, folder)
        (folder / file).write_bytes(data)
        (folder / MANIFEST_NAME).unlink()
        seal(folder, dict(toy.content.graphs))
        message = self.refused(EnvironmentNotFitError, open_artifact(folder), name, graphs=["step"])
        assert file in message


class Tied(torch.nn.Module):
    """tokens [1, n] -> logits [1, n, V], by one matrix [V, d], and y [1, n, 2] by a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.vocabulary = torch.nn.Parameter(torch.randn(60, 6))
        self.small = torch.nn.Parameter(torch.randn(2, 6))

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.nn.functional.embedding(tokens, self.vocabulary)
        return torch.nn.functional.linear(x, self.vocabulary), torch.nn.functional.linear(x, self.small)


class Matrices(TorchDispatchMode):
    """Remembers where the matrices lie that operators are given, by shape, and their strides."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[int, ...], set[tuple[int, tuple[int, ...]]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in args:
            if isinstance(given, torch.Tensor) and given.ndim == 2:
                self.seen.setdefault(tuple(given.shape), set()).add((given.data_ptr(), given.stride()))
        return func(*args, **(kwargs or {}))


def test_torchscript_has_one_vocabulary_on_the_cpu_whose_transpose_is_contiguous(tmp_path: Path):
    module = Tied().eval()
    tokens = TensorSpec(name="tokens", dtype="int64", shape=(1, 3))
    outputs = tuple(TensorSpec(name=name, dtype="float32", shape=(1, 3, n)) for name, n in (("logits", 60), ("y", 2)))
    definition = GraphDefinition("step", module, (tokens,), outputs)
    files = {"torchscript": write_torchscript({"step": definition}, tmp_path / "model.ts")["step"]}
    seal(tmp_path, {"step": definition.signature(files)})
    engine = open_engine(open_artifact(tmp_path), "torchscript", graphs=["step"])
    given = torch.tensor([[59, 0, 7]])
    with Matrices() as matrices:
        found = engine.run("step", {"tokens": given})
    expected = module(given)
    torch.testing.assert_close(found["logits"], expected[0].detach())
    torch.testing.assert_close(found["y"], expected[1].detach())
    (vocabulary,) = matrices.seen[60, 6]
    assert vocabulary[1] == (1, 60)
    assert {strides for _, strides in matrices.seen[2, 6]} == {(6, 1)}
