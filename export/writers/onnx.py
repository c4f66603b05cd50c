"""Writes graphs as ONNX, opset 18, whose parameters lie in the artifact's weights.safetensors.

The graphs are exported on the meta device: no weight is in memory, and none is copied. Only operators of the default
domain are used, and neither control flow nor STFT, so that ATC takes the graphs.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters
from onnx_ir.passes import Sequential, common
from onnxscript import opset18 as op
from onnxscript.optimizer import fold_constants
from torch.export import ExportedProgram
from torch.onnx._internal.exporter import _core as exporter
from torch.onnx._internal.exporter._registration import ONNXRegistry

from export.graphs import GraphDefinition, exported_programs
from export.safetensors_writer import StoredTensor, stored_tensors
from export.unroll import unroll_model
from runtime.errors import InputError

# The highest that ATC takes, and the format that came with it.
OPSET = 18
IR_VERSION = 8
_MATRIX = 2


def write_onnx(graphs: Mapping[str, GraphDefinition], weights: Path, folder: Path) -> dict[str, str]:
    """Write each graph as `<graph>.onnx`; the same graphs give the same bytes.

    Parameters
    ----------
    graphs : Mapping[str, GraphDefinition]
        By name; parameters may lie on the meta device.
    weights : Path
        The safetensors file in `folder` that holds the parameters under their names. Only its header is read.
    folder : Path
        Where the files go.

    Returns
    -------
    dict[str, str]
        Graph to file name.

    Raises
    ------
    InputError
        `weights` lacks a parameter, or holds it with another dtype or shape.

    """
    stored = stored_tensors(weights)
    files: dict[str, str] = {}
    for graph, program in exported_programs(graphs.values()):
        model = _onnx_from_program(graph, program)
        _set_initializers(model, graph, stored, weights)
        _tidy(model)
        if graph.repeats > 1:
            unroll_model(model, graph)
        if not graph.is_static:
            _name_dimensions(model, graph)
        model.ir_version = IR_VERSION
        files[graph.name] = f"{graph.name}.onnx"
        ir.save(model, folder / files[graph.name])
        onnx.checker.check_model(folder / files[graph.name])
    return files


def _onnx_from_program(graph: GraphDefinition, program: ExportedProgram) -> ir.Model:
    with _quiet():
        # What torch.onnx.export calls; that builds a registry for each graph, a fifth of the time.
        converted = exporter.export(
            program,
            registry=_registry(),
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    return converted.model


@cache
def _registry() -> ONNXRegistry:
    """Return torchlib's translations, and ours in place of some."""
    registry = ONNXRegistry.from_torchlib(OPSET)
    for target, translation in _TRANSLATIONS.items():
        registry.register_op(target, translation)
    return registry


def _name_dimensions(model: ir.Model, graph: GraphDefinition) -> None:
    """Give the symbolic dimensions of inputs and outputs the graph's names for them, not the exporter's."""
    for values, specs in ((model.graph.inputs, graph.inputs), (model.graph.outputs, graph.outputs)):
        for value, spec in zip(values, specs, strict=True):
            value.shape = ir.Shape(spec.shape)


def _set_initializers(
    model: ir.Model, graph: GraphDefinition, stored: Mapping[str, StoredTensor], weights: Path
) -> None:
    """Point parameters into the weights file, and give buffers their values."""
    buffers = dict(graph.module.named_buffers())
    for name, value in model.graph.initializers.items():
        if name in buffers:
            value.const_value = ir.tensor(buffers[name].numpy(), name=name)
            continue
        parameter = graph.module.get_parameter(name)
        found = stored.get(name)
        if found is None or (found.dtype, found.shape) != (parameter.dtype, tuple(parameter.shape)):
            raise InputError(
                f"{weights}: graph {graph.name} expects {name} as {parameter.dtype} {tuple(parameter.shape)}, "
                f"found {found}; write the weights of the same checkpoint and variant"
            )
        value.const_value = ir.ExternalTensor(
            location=weights.name,
            offset=found.offset,
            length=found.length,
            dtype=tensor_adapters.from_torch_dtype(found.dtype),
            shape=ir.Shape(found.shape),
            name=name,
            base_dir=weights.parent,
        )


def _tidy(model: ir.Model) -> None:
    """Fold shapes and indices, now chains of small nodes; drop what is unused, repeated or tells of this machine.

    The limit of 64 elements keeps the folding from reading a weight.
    """
    fold_constants(model, onnx_shape_inference=False, input_size_limit=64, output_size_limit=64)
    Sequential(
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
    )(model)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings, once a graph: torchvision is not there, a class of torch is deprecated."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _linear(x: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
    """Translate aten.linear to Gemm, which takes the weight as the checkpoint stores it: [out, in]."""
    operands = [weight] if bias is None else [weight, bias]
    result: ir.Value
    if len(_shape(x)) == _MATRIX:
        result = op.Gemm(x, *operands, transB=1)
        return result
    *leading, width = _static_shape(x)
    rows = op.Reshape(x, op.Constant(value_ints=[prod(leading), width]))
    product = op.Gemm(rows, *operands, transB=1)
    result = op.Reshape(product, op.Constant(value_ints=[*leading, _static_shape(weight)[0]]))
    return result


def _conv1d(  # noqa: PLR0917 - aten's signature
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> ir.Value:
    """Translate a convolution."""
    operands = [x, weight] if bias is None else [x, weight, bias]
    pads = [*padding, *padding]
    result: ir.Value = _at_least_float(op.Conv, operands, strides=stride, pads=pads, dilations=dilation, group=groups)
    return result


def _conv2d(  # noqa: PLR0917 - aten's signature
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> ir.Value:
    """Translate a convolution over two dimensions."""
    return _conv1d(x, weight, bias, stride, padding, dilation, groups)


def _avg_pool2d(x: ir.Value, kernel_size: Sequence[int]) -> ir.Value:
    """Translate average pooling without overlap or padding."""
    result: ir.Value = _at_least_float(op.AveragePool, [x], kernel_shape=kernel_size, strides=kernel_size)
    return result


def _max_pool2d(x: ir.Value, kernel_size: Sequence[int]) -> ir.Value:
    """Translate maximum pooling without overlap or padding."""
    maxima: ir.Value
    maxima, _indices = _at_least_float(op.MaxPool, [x], kernel_shape=kernel_size, strides=kernel_size)
    return maxima


def _at_least_float(operator: Any, operands: Sequence[ir.Value | None], **attributes: Any) -> Any:
    """Return what an operator returns; opset 18 has it in no bfloat16, which is therefore computed in float32."""
    dtype = next(operand.dtype for operand in operands if operand is not None)
    if dtype != ir.DataType.BFLOAT16:
        return operator(*operands, **attributes)
    wide = [operand if operand is None else op.Cast(operand, to=ir.DataType.FLOAT) for operand in operands]
    results = operator(*wide, **attributes)
    return (
        tuple(op.Cast(result, to=dtype) for result in results)
        if isinstance(results, tuple)
        else op.Cast(results, to=dtype)
    )


def _gelu(x: ir.Value, approximate: str = "none") -> ir.Value:
    """Translate the exact GELU; the order of the products is the one that ONNX Runtime fuses."""
    assert approximate == "none"
    root, one, half = (op.Constant(value=ir.tensor(c, dtype=x.dtype)) for c in (math.sqrt(2.0), 1.0, 0.5))
    result: ir.Value = op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, root)), one)), half)
    return result


def _attention(query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
    """Translate unmasked attention; the exporter's own translation scales the keys too, and computes shapes."""
    *_, width = _static_shape(query)
    query = op.Mul(query, op.Constant(value=ir.tensor(width**-0.5, dtype=query.dtype)))
    key = op.Transpose(key, perm=[0, 1, 3, 2])
    attended: ir.Value = op.MatMul(op.Softmax(op.MatMul(query, key), axis=-1), value)
    return attended


def _static_shape(value: ir.Value) -> list[int]:
    return [int(size) for size in _shape(value).numpy()]


def _shape(value: ir.Value) -> ir.Shape:
    assert value.shape is not None
    return value.shape


_TRANSLATIONS: dict[Any, Any] = {
    torch.ops.aten.linear.default: _linear,
    torch.ops.aten.conv1d.default: _conv1d,
    torch.ops.aten.conv2d.default: _conv2d,
    torch.ops.aten.avg_pool2d.default: _avg_pool2d,
    torch.ops.aten.max_pool2d.default: _max_pool2d,
    torch.ops.aten.gelu.default: _gelu,
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
}
