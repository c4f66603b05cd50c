"""Faults put into the files of an artifact: ONNX graphs and weights are edited, and nothing of verify knows how.

Each is a mistake that a port, a converter or a kernel has made: a gain, heads or positions in another order, another
constant, lost cache rows, rounding where there should be none. The gate that sees it is not said, only that one does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from safetensors.numpy import load_file

from runtime.artifact import Artifact, open_artifact
from runtime.engines.onnxruntime import OnnxRuntimeEngine
from verify.accuracy import judge_engine
from verify.results import EngineAccuracy

VARIANTS = ["fp32", pytest.param("fp16", marks=pytest.mark.slow)]
FIRST, LAST = "encoder.layers.0", "decoder.layers.1"
ENCODER, STEP = ("encoder",), ("step",)
DECODER = ("step", "prefill_4", "prefill_32", "prefill_52")
ALIGN = ("align",)


class Edited:
    """One ONNX graph of an artifact and its weights, to be changed."""

    def __init__(self, path: Path, weights: dict[str, NDArray[np.generic]]) -> None:
        self.path, self.weights = path, weights
        self.model = onnx.load(str(path), load_external_data=False)

    def change(self, name: str, edit: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
        tensor = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        old = self.weights[name]
        changed = edit(old.astype(np.float64)).astype(old.dtype)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), name))

    def constant(self, array: NDArray[np.generic]) -> str:
        name = f"edited_{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def before_inputs(self, kind: str, prefix: str, array: NDArray[np.generic]) -> None:
        """Put an operator with a constant between every input whose name begins with `prefix` and its readers."""
        other = self.constant(array)
        for name in [value.name for value in self.model.graph.input if value.name.startswith(prefix)]:
            for node in self.model.graph.node:
                node.input[:] = [f"{name}_edited" if read == name else read for read in node.input]
            self.model.graph.node.insert(0, helper.make_node(kind, [name, other], [f"{name}_edited"]))

    def save(self) -> None:
        onnx.save(self.model, str(self.path))


@pytest.fixture(scope="module", params=VARIANTS)
def artifact(request: pytest.FixtureRequest, shared_folder: Path) -> Artifact:
    if request.param == "fp32":
        return open_artifact(request.getfixturevalue("pocket_artifact"))
    from export.pipeline import export_model

    samples = Path(__file__).resolve().parents[2] / "samples"
    out, clips = shared_folder / "edited", [samples / "short_en.wav"]
    return open_artifact(export_model("whisper-pocket", variant="fp16", formats=["onnx"], out=out, recordings=clips))


def judged(artifact: Artifact, graphs: tuple[str, ...], folder: Path, edit: Callable[[Edited], None]) -> EngineAccuracy:
    """Judge the artifact's cases of `graphs`, edited, and its decisions."""
    copy = Path(shutil.copytree(artifact.path, folder / "copy"))
    weights = load_file(copy / "weights.safetensors")
    for graph in graphs:
        edited = Edited(copy / artifact.content.graphs[graph].files["onnx"], weights)
        edit(edited)
        edited.save()
    # Not opened anew, which refuses a file that was changed.
    engine = OnnxRuntimeEngine(Artifact(copy, artifact.manifest), threads=1)
    selected = {case.name for case in artifact.content.cases if case.graph in graphs}
    selected |= {run.name for run in artifact.content.teacher_forced}
    try:
        return judge_engine(artifact, engine, selected=selected)[0]
    finally:
        engine.close()


def heads(width: int, *order: int) -> NDArray[np.int64]:
    """Return the rows of a projection with its heads in another order."""
    return np.arange(width).reshape(len(order), -1)[list(order)].ravel()


def swapped_heads(graph: Edited) -> None:
    for part in ("weight", "bias"):
        graph.change(f"{FIRST}.self_attn.v_proj.{part}", lambda x: x[heads(len(x), 1, 0)])


def other_epsilon(graph: Edited, value: float) -> None:
    for node in graph.model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f = value


def lost_rows(graph: Edited) -> None:
    size = next(value for value in graph.model.graph.input if value.name == "self_v_0").type.tensor_type
    rows, dtype = size.shape.dim[2].dim_value, helper.tensor_dtype_to_np_dtype(size.elem_type)
    graph.before_inputs("Mul", "self_v_", (np.arange(rows) < 40).astype(dtype)[None, None, :, None])


def quantized(x: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    scale = np.abs(x).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.round(x / scale) * scale


def short(x: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 2.0**bits) / 2.0**bits, exponent)


def on_half(x: NDArray[np.float64], value: float) -> NDArray[np.float64]:
    """Return `value` on every other channel: a norm takes away what is added to all of them."""
    return np.where(np.arange(len(x)) % 2, value, 0.0)


def rolled(name: str) -> Callable[[Edited], None]:
    return lambda graph: graph.change(name, lambda x: np.roll(x, 1, axis=0))


def without(name: str) -> Callable[[Edited], None]:
    return lambda graph: graph.change(name, np.zeros_like)


Fault = tuple[tuple[str, ...], Callable[[Edited], None]]
EITHER: dict[str, Fault] = {
    "heads swapped": (ENCODER, swapped_heads),
    "encoder positions off by one": (ENCODER, rolled("encoder.embed_positions.weight")),
    "step positions off by one": (STEP, rolled("decoder.embed_positions.weight")),
    "prefill positions off by one": (DECODER[1:], rolled("decoder.embed_positions.weight")),
    "positions off by one in align": (ALIGN, rolled("decoder.embed_positions.weight")),
    "another epsilon in the decoder": (DECODER, partial(other_epsilon, value=1e-3)),
    "cache rows from 40 on never written": (STEP, lost_rows),
    "bias of a query forgotten": (ENCODER, without(f"{FIRST}.self_attn.q_proj.bias")),
    "bias of the decoder's norm forgotten": (DECODER, without("decoder.layer_norm.bias")),
    "rows of the vocabulary off by one": (DECODER, rolled("decoder.embed_tokens.weight")),
}
# Strengths: the least of 1, 3, 10 and so on that a precision has to show; where that is at its limit, a third more.
FP32: dict[str, Fault] = {
    "another epsilon in the encoder": (ENCODER, partial(other_epsilon, value=1e-3)),
    "v_proj x1.00004": (ENCODER, lambda g: g.change(f"{FIRST}.self_attn.v_proj.weight", lambda x: 1.00004 * x)),
    "decoder's fc2 x1.0001": (DECODER, lambda g: g.change(f"{LAST}.fc2.weight", lambda x: 1.0001 * x)),
    "last norm x1.0001": (DECODER, lambda g: g.change("decoder.layer_norm.weight", lambda x: 1.0001 * x)),
    "3e-4 added to a layer": (ENCODER, lambda g: g.change(f"{FIRST}.fc2.bias", lambda x: x + on_half(x, 3e-4))),
    "a layer in 8 bits": (ENCODER, lambda g: g.change(f"{FIRST}.fc1.weight", lambda x: quantized(x, 8))),
    "a layer's mantissas in 11 bits": (ENCODER, lambda g: g.change(f"{FIRST}.fc1.weight", lambda x: short(x, 11))),
}
FP16: dict[str, Fault] = {
    "another epsilon in the encoder": (ENCODER, partial(other_epsilon, value=4e-3)),
    "v_proj x1.01": (ENCODER, lambda g: g.change(f"{FIRST}.self_attn.v_proj.weight", lambda x: 1.01 * x)),
    "decoder's fc2 x1.01": (DECODER, lambda g: g.change(f"{LAST}.fc2.weight", lambda x: 1.01 * x)),
    "last norm x1.01": (DECODER, lambda g: g.change("decoder.layer_norm.weight", lambda x: 1.01 * x)),
    "0.01 added to a layer": (ENCODER, lambda g: g.change(f"{FIRST}.fc2.bias", lambda x: x + on_half(x, 0.01))),
    "a layer in 7 bits": (ENCODER, lambda g: g.change(f"{FIRST}.fc1.weight", lambda x: quantized(x, 7))),
    "a layer's mantissas in 5 bits": (ENCODER, lambda g: g.change(f"{FIRST}.fc1.weight", lambda x: short(x, 5))),
}


def test_what_was_only_written_anew_passes(artifact: Artifact, tmp_path: Path) -> None:
    accuracy = judged(artifact, (*ENCODER, *DECODER, *ALIGN), tmp_path, lambda _: None)
    assert accuracy.verdict == "pass", accuracy.reason


def test_every_fault_fails(artifact: Artifact, tmp_path: Path) -> None:
    own = FP32 if artifact.content.variant == "fp32" else FP16
    missed = {}
    for place, (name, (graphs, edit)) in enumerate({**EITHER, **own}.items()):
        accuracy = judged(artifact, graphs, tmp_path / str(place), edit)
        shutil.rmtree(tmp_path / str(place))
        if accuracy.verdict != "fail":
            shares = [one.share for c in accuracy.cases for out in c.outputs for one in out.judged]
            missed[name] = max(shares)
    assert missed == {}, "by the largest share of a limit that each used"
