"""What the layouts of other packages have in common: NeMo's graphs, as ONNX that refers to one file of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

from export.families.parakeet_tdt.layouts.nemo_modules import Encoder
from export.families.parakeet_tdt.modules import Parakeet
from export.graphs import GraphDefinition
from export.writers.onnx import write_onnx
from runtime.errors import InputError
from runtime.families.parakeet_tdt.settings import ParakeetDims, ParakeetSettings
from runtime.fastconformer.settings import FastConformerFrontend
from runtime.manifest import TensorSpec

BLANK = "<blk>"


@dataclass(frozen=True)
class NetworkSource:
    """A network to be written; `pieces` are those of its vocabulary by id, without the blank, `scores` theirs.

    A text's pieces are merged in the order of the scores of what they become, the highest first.
    """

    dims: ParakeetDims
    frontend: FastConformerFrontend
    settings: ParakeetSettings
    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    origin: str
    licence: str

    def network(self) -> Parakeet:
        """Return the network on the meta device."""
        with torch.device("meta"):
            return Parakeet(self.dims).eval().requires_grad_(requires_grad=False)


def check_network(source: NetworkSource, package: str) -> None:
    """Raise InputError for features, durations or pieces that both packages would take for others."""
    usual = FastConformerFrontend(n_mels=source.frontend.n_mels)
    for name, value in source.frontend.model_dump().items():
        expected = getattr(usual, name)
        if value != expected:
            raise InputError(
                f"layout {package}: expected {name} {expected}, found {value}; {package} computes no other features"
            )
    durations = tuple(range(source.dims.n_durations))
    if source.settings.durations != durations:
        raise InputError(
            f"layout {package}: expected durations {list(durations)}, found {list(source.settings.durations)}; "
            f"{package} takes a duration's place for its value"
        )
    for piece in source.pieces:
        if piece == BLANK or not piece or piece != "".join(piece.split()):
            raise InputError(
                f"layout {package}: expected pieces without white space that are not {BLANK}, found {piece!r}; "
                f"{package}'s list of tokens cannot hold it"
            )


def encoder_graph(name: str, network: Parakeet, dims: ParakeetDims) -> GraphDefinition:
    """Return the encoder's graph, whose inputs and outputs both packages name alike."""
    return GraphDefinition(
        name,
        Encoder(network.encoder, dims).eval(),
        (
            TensorSpec(name="audio_signal", dtype="float32", shape=("B", dims.n_mels, "n_frames")),
            TensorSpec(name="length", dtype="int64", shape=("B",)),
        ),
        (
            TensorSpec(name="outputs", dtype="float32", shape=("B", dims.d_model, "n_encoded")),
            TensorSpec(name="encoded_lengths", dtype="int64", shape=("B",)),
        ),
        {"B": 1, "n_frames": 1},
        {"n_frames": 100},
    )


def state_specs(dims: ParakeetDims) -> Callable[..., tuple[TensorSpec, ...]]:
    """Return what makes inputs or outputs for LSTM states, f32 [L, B, H], of their names."""
    shape = (dims.pred_layers, "B", dims.pred_hidden)
    return lambda *names: tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name in names)


def write_graphs(graphs: Iterable[GraphDefinition], weights: Path) -> None:
    """Write each graph as `<graph>.onnx` beside the weights."""
    write_onnx({graph.name: graph for graph in graphs}, weights, weights.parent)


def int32(path: Path, names: Sequence[str]) -> None:
    """Make int32 of int64 inputs and outputs of a graph, as in what NeMo exports; inside it stays int64."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    for value in (*graph.input, *graph.output):
        if value.name in names:
            value.type.tensor_type.elem_type = TensorProto.INT32
    inputs = {value.name for value in graph.input} & set(names)
    outputs = {value.name for value in graph.output} & set(names)
    for node in graph.node:
        node.input[:] = [f"{name}_int64" if name in inputs else name for name in node.input]
        node.output[:] = [f"{name}_int64" if name in outputs else name for name in node.output]
    for name in sorted(inputs):
        graph.node.insert(0, helper.make_node("Cast", [name], [f"{name}_int64"], to=TensorProto.INT64))
    for name in sorted(outputs):
        graph.node.append(helper.make_node("Cast", [f"{name}_int64"], [name], to=TensorProto.INT32))
    onnx.save(model, path)
    onnx.checker.check_model(path)


def numbered_pieces(pieces: Sequence[str]) -> str:
    """Return one line for each piece and the blank: the piece, a space, its id."""
    return "".join(f"{piece} {index}\n" for index, piece in enumerate((*pieces, BLANK)))
