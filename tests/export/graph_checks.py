"""What is asked of the graphs of every family."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import onnx
import torch

from export.graphs import GraphDefinition
from export.om import check_onnx

# Operators of control flow, and those that ATC has none for.
_NEVER = frozenset({"Loop", "Scan", "If", "STFT", "DFT", "SequenceAt", "Einsum", "LSTM", "GRU"})
# Bytes of constants in a graph's file; the front-end's kernels are some.
_INLINE = {"frontend": 5_000_000}


def relative_l2(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def check_atc_takes(
    graphs: Mapping[str, GraphDefinition],
    folder: Path,
    *,
    never: Collection[str] = (),
    inline: int = 20_000,
    inline_of: Mapping[str, int] = _INLINE,
) -> None:
    """The ONNX graphs in `folder` have one opset, our signature, no operator of `never`, and few constants inside."""
    for name, graph in graphs.items():
        path = folder / f"{name}.onnx"
        onnx.checker.check_model(path, full_check=True)
        assert not [finding for finding in check_onnx(path) if finding.level == "refused"]
        model = onnx.load(path, load_external_data=False)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        assert not model.functions
        assert {node.domain for node in model.graph.node} == {""}
        assert not {node.op_type for node in model.graph.node} & {*_NEVER, *never}
        for values, specs in ((model.graph.input, graph.inputs), (model.graph.output, graph.outputs)):
            for value, spec in zip(values, specs, strict=True):
                dims = value.type.tensor_type.shape.dim
                assert tuple(dim.dim_param or dim.dim_value for dim in dims) == spec.shape
        external = onnx.TensorProto.EXTERNAL
        within = sum(tensor.ByteSize() for tensor in model.graph.initializer if tensor.data_location != external)
        assert within < inline_of.get(name, inline)
