"""The file writers on small graphs: what the files hold, that two writes are equal, and what is refused."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from export.checkpoint import SafetensorsCheckpoint
from export.graphs import GraphDefinition
from export.safetensors_writer import StoredTensor, TensorInfo, stored_tensors, write_safetensors
from export.writers.onnx import write_onnx
from export.writers.pt2 import write_pt2
from export.writers.torchscript import write_torchscript
from runtime.errors import GateError, InputError
from runtime.manifest import TensorSpec

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def info(tensor: torch.Tensor) -> TensorInfo:
    return TensorInfo(tensor.dtype, tuple(tensor.shape))


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_safetensors(path, {name: info(tensor) for name, tensor in tensors.items()}, tensors.__getitem__)


@st.composite
def tensor_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    names = draw(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=6))
    shapes = st.lists(st.integers(0, 5), max_size=3)
    return {
        name: torch.randint(0, 100, draw(shapes)).to(draw(st.sampled_from(DTYPES)))
        for name in names
        if "\x00" not in name
    }


class TestSafetensors:
    @given(tensors=tensor_dicts())
    @settings(max_examples=60)
    def test_package_reads_what_is_written(
        self, tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.mktemp("file") / "tensors.safetensors"
        write(path, tensors)
        found = load_file(path)
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert info(found[name]) == info(tensor)
            assert torch.equal(found[name], tensor)
        data = path.read_bytes()
        for name, stored in stored_tensors(path).items():
            assert stored.offset % stored.dtype.itemsize == 0
            raw = data[stored.offset : stored.offset + stored.length]
            if raw:
                assert torch.equal(
                    torch.frombuffer(bytearray(raw), dtype=stored.dtype).reshape(stored.shape), tensors[name]
                )

    @given(data=st.data())
    @settings(max_examples=200)
    def test_what_is_read_is_what_the_package_reads(
        self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Whatever a header says: refused in one line, or as the package has it."""
        path = tmp_path_factory.mktemp("file") / "tensors.safetensors"
        numbers = st.sampled_from([0, 1, 2, 3, 4, 8, 16, -1, 1.5, True, None, "4", [], 2**31, 2**62, 2**63, 10**30])
        entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
        entries = {"a": dict(entry), "b": {**entry, "shape": [1], "data_offsets": [16, 20]}}
        for _ in range(data.draw(st.integers(0, 2))):
            changed = entries[data.draw(st.sampled_from(["a", "b"]))]
            key = data.draw(st.sampled_from(list(entry)))
            value = data.draw(st.lists(numbers, max_size=3) | numbers | st.sampled_from(["F64", "I64", "X", "BOOL"]))
            changed[key] = value
        header = json.dumps(entries).encode()
        length = data.draw(st.sampled_from([len(header)] * 5 + [0, 1, 8, 2**31, 2**63, len(header) + 1]))
        size = data.draw(st.sampled_from([20] * 5 + [0, 19, 21, 16]))
        path.write_bytes(length.to_bytes(8, "little") + header + bytes(size))
        try:
            found = stored_tensors(path)
        except InputError as error:
            is_short = len(str(error)) < 500 and len(str(error).splitlines()) == 1
            found = None if is_short else pytest.fail(str(error))
        if found is None:
            return
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == set(found)
            for name, tensor in found.items():
                assert file.get_slice(name).get_shape() == list(tensor.shape)
                assert torch.equal(SafetensorsCheckpoint((path,)).read(name), file.get_tensor(name))

    def test_bytes_do_not_depend_on_the_order(self, tmp_path: Path) -> None:
        tensors = {"b": torch.ones(3), "a": torch.ones(2, 2), "h": torch.ones(5, dtype=torch.float16)}
        write(tmp_path / "one", tensors)
        write(tmp_path / "two", dict(reversed(tensors.items())))
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()

    def test_one_tensor_is_in_memory_at_a_time(self, tmp_path: Path) -> None:
        alive: list[weakref.ref[torch.Tensor]] = []

        def read(_name: str) -> torch.Tensor:
            assert all(reference() is None for reference in alive)
            tensor = torch.ones(1000)
            alive.append(weakref.ref(tensor))
            return tensor

        write_safetensors(tmp_path / "file", {name: TensorInfo(torch.float32, (1000,)) for name in "abc"}, read)
        assert len(alive) == 3

    def test_strided_tensor_is_written_in_order(self, tmp_path: Path) -> None:
        tensor = torch.arange(12).reshape(3, 4).T
        write(tmp_path / "file", {"x": tensor})
        assert torch.equal(load_file(tmp_path / "file")["x"], tensor)

    @pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(2, dtype=torch.float16)], ids=["shape", "dtype"])
    def test_another_tensor_than_promised_is_refused(self, wrong: torch.Tensor, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"tensor x: expected torch.float32 \(2,\), found"):
            write_safetensors(tmp_path / "file", {"x": TensorInfo(torch.float32, (2,))}, lambda _name: wrong)

    def test_index_of_the_packages_own_files(self, tmp_path: Path) -> None:
        save_file({"x": torch.ones(2, 3), "y": torch.ones((), dtype=torch.bfloat16)}, tmp_path / "file", {"a": "b"})
        found = stored_tensors(tmp_path / "file")
        assert found.keys() == {"x", "y"}
        assert isinstance(found["x"], StoredTensor)
        assert (found["x"].dtype, found["x"].shape, found["x"].length) == (torch.float32, (2, 3), 24)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:-1],
            lambda data: data + b"x",
            lambda data: data[:0],
            lambda data: b"\xff" * len(data),
            lambda data: data.replace(b"F32", b"F99"),
            lambda data: data.replace(b'"shape"', b'"shame"'),
        ],
        ids=["cut", "longer", "empty", "other", "dtype", "key"],
    )
    def test_damaged_file_is_refused(self, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
        path = tmp_path / "file"
        write(path, {"x": torch.ones(4)})
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(InputError, match="file: expected"):
            stored_tensors(path)


class Tied(nn.Module):
    """Logits of tokens by their own embedding: one parameter with two uses, a buffer, and an unused parameter."""

    def __init__(self, embedding: nn.Embedding, other: nn.Linear, shift: float) -> None:
        super().__init__()
        self.embedding = embedding
        self.other = other
        self.shift: torch.Tensor
        self.register_buffer("shift", torch.tensor([shift]), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.embedding(tokens) + self.shift, self.embedding.weight)


class Faulty(nn.Module):
    def __init__(self, fault: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fault(x)


def tied_graphs(*, meta: bool = False) -> dict[str, GraphDefinition]:
    torch.manual_seed(0)
    with torch.device("meta" if meta else "cpu"):
        embedding, other = nn.Embedding(50, 16), nn.Linear(16, 16)
    return {
        name: GraphDefinition(
            name,
            Tied(embedding, other, shift).eval().requires_grad_(requires_grad=False),
            (TensorSpec(name="tokens", dtype="int64", shape=(1, length)),),
            (TensorSpec(name="logits", dtype="float32", shape=(1, length, 50)),),
        )
        for name, length, shift in (("short", 2, 0.5), ("long", 5, -0.5))
    }


def write_weights(graphs: dict[str, GraphDefinition], folder: Path) -> Path:
    write(folder / "weights.safetensors", dict(graphs["short"].module.named_parameters()))
    return folder / "weights.safetensors"


def write_all(graphs: dict[str, GraphDefinition], folder: Path) -> dict[str, str]:
    folder.mkdir()
    write_onnx(graphs, write_weights(graphs, folder), folder)
    write_torchscript(graphs, folder / "model.ts")
    write_pt2(graphs, folder)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_two_writes_are_equal_and_know_nothing_of_this_machine(tmp_path: Path) -> None:
    first = write_all(tied_graphs(), tmp_path / "first")
    assert first.keys() == {
        "weights.safetensors", "model.ts", "short.onnx", "long.onnx", "short.pt2", "long.pt2"
    }  # fmt: skip
    assert write_all(tied_graphs(), tmp_path / "second") == first
    for path in (tmp_path / "first").iterdir():
        data = path.read_bytes()
        assert str(tmp_path).encode() not in data, path.name
        assert str(Path(__file__).parent).encode() not in data, path.name
        assert b"site-packages" not in data, path.name


class TestOnnx:
    def test_graphs_on_meta_point_into_the_weights_file(self, tmp_path: Path) -> None:
        graphs = tied_graphs()
        weights = write_weights(graphs, tmp_path)
        assert write_onnx(tied_graphs(meta=True), weights, tmp_path) == {"short": "short.onnx", "long": "long.onnx"}
        stored = stored_tensors(weights)
        model = onnx.load(tmp_path / "short.onnx", load_external_data=False)
        external = {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data}
            for tensor in model.graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        }
        place = stored["embedding.weight"]
        assert external == {
            "embedding.weight": {
                "location": "weights.safetensors",
                "offset": str(place.offset),
                "length": str(place.length),
            }
        }
        tokens = torch.tensor([[3, 49, 0, 7, 7]])
        session = onnxruntime.InferenceSession(tmp_path / "long.onnx")
        found = torch.from_numpy(session.run(None, {"tokens": tokens.numpy()})[0])
        torch.testing.assert_close(found, graphs["long"].module(tokens), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        "stored",
        [{}, {"embedding.weight": torch.ones(50, 8)}, {"embedding.weight": torch.ones(50, 16).half()}],
        ids=["missing", "shape", "dtype"],
    )
    def test_weights_of_another_model_are_refused(self, stored: dict[str, torch.Tensor], tmp_path: Path) -> None:
        weights = tmp_path / "weights.safetensors"
        write(weights, stored)
        with pytest.raises(InputError, match="graph short expects embedding"):
            write_onnx(tied_graphs(meta=True), weights, tmp_path)
        assert list(tmp_path.iterdir()) == [weights]


class TestTorchScript:
    def test_one_file_holds_shared_weights_once(self, tmp_path: Path) -> None:
        graphs = tied_graphs()
        path = tmp_path / "model.ts"
        assert write_torchscript(graphs, path) == {"short": "model.ts", "long": "model.ts"}
        loaded = torch.jit.load(path, map_location="cpu")
        assert path.stat().st_size < 1.9 * graphs["short"].module.embedding.weight.nbytes + 10_000
        tokens = torch.tensor([[3, 49]])
        assert torch.equal(loaded.short(tokens), graphs["short"].module(tokens))
        # The graphs' buffers differ under the same name.
        tokens = torch.tensor([[3, 49, 1, 2, 3]])
        assert torch.equal(loaded.long(tokens), graphs["long"].module(tokens))

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (lambda x: x + torch.zeros(3), "graph faulty: expected no device, found meta"),
            (lambda x: x * torch.arange(3), "graph faulty: expected no device, found meta"),
            (lambda x: x + torch.zeros(3, device="cpu").sum(), "graph faulty: expected no device, found cpu"),
            (lambda x: x * torch.tensor([1.0, 2.0, 3.0]), "graph faulty: expected no tensor made in forward"),
        ],
        ids=["zeros", "arange", "cpu scalar", "tensor"],
    )
    def test_tensor_made_in_forward_is_refused(
        self, fault: Callable[[torch.Tensor], torch.Tensor], message: str, tmp_path: Path
    ) -> None:
        spec = TensorSpec(name="x", dtype="float32", shape=(2, 3))
        graph = GraphDefinition("faulty", Faulty(fault).eval(), (spec,), (spec,))
        with pytest.raises(GateError, match=message):
            write_torchscript({"faulty": graph}, tmp_path / "model.ts")
        assert list(tmp_path.iterdir()) == []

    def test_loads_on_another_device(self, tmp_path: Path) -> None:
        """The meta device stands for any: a constant of the CPU would meet the inputs there."""
        write_torchscript(tied_graphs(), tmp_path / "model.ts")
        loaded = torch.jit.load(tmp_path / "model.ts", map_location="meta")
        assert loaded.short(torch.empty(1, 2, dtype=torch.int64, device="meta")).device.type == "meta"


class TestPt2:
    def test_weights_are_attached_on_load(self, tmp_path: Path) -> None:
        graphs = tied_graphs()
        weights = load_file(write_weights(graphs, tmp_path))
        assert write_pt2(tied_graphs(meta=True), tmp_path) == {"short": "short.pt2", "long": "long.pt2"}
        module = torch.export.load(tmp_path / "short.pt2").module()
        assert all(tensor.is_meta for tensor in module.state_dict().values())
        module.load_state_dict({name: weights[name] for name in module.state_dict()}, assign=True)
        tokens = torch.tensor([[3, 49]])
        assert torch.equal(module(tokens), graphs["short"].module(tokens))


def test_symbolic_shape_without_a_least_size_is_refused() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(1, "time"))
    with pytest.raises(ValueError, match="graph any: expected the least size of 'time'"):
        GraphDefinition("any", nn.Identity(), (spec,), (spec,)).meta_inputs()
