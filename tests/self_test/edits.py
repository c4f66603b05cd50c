"""Edits of ONNX graphs that any family's faults are made of: gains, rounding, rows that are lost or elsewhere."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from self_test.known_fault import Edit, Edited, Strength

Array = NDArray[np.float64]
BITS = 24  # of a float32's mantissa


def gain(weight: str) -> Edit:
    return lambda graph, strength: graph.change(weight, lambda x: (1 + strength) * x)


def added(weight: str) -> Edit:
    """On every other channel: a norm takes away what is added to all of them."""
    return lambda graph, strength: graph.change(weight, lambda x: x + np.where(np.arange(len(x)) % 2, strength, 0.0))


def epsilon_added(graph: Edited, strength: Strength) -> None:
    """To that of every layer norm."""
    for node in graph.model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f += strength


def weight_cut(weight: str) -> Edit:
    """Round mantissas to a relative 2 * strength."""
    return lambda graph, strength: graph.change(weight, partial(_short, bits=round(-np.log2(strength))))


def _short(x: Array, bits: int) -> Array:
    mantissa, exponent = np.frexp(x)
    return np.asarray(np.ldexp(np.round(mantissa * 2.0**bits) / 2.0**bits, exponent))


def product_cut(weight: str) -> Edit:
    """Round both inputs of a product in float32, by Veltkamp's splitting: as HF32 does to 11 bits, bfloat16 to 8."""

    def edit(graph: Edited, strength: Strength) -> None:
        bits = round(-np.log2(strength))
        node = next(node for node in graph.model.graph.node if weight in node.input)
        by, x = graph.constant(np.float32(2.0 ** (BITS - bits) + 1)), node.input[0]
        scaled = graph.operator("Mul", [x, by], node)
        rest = graph.operator("Sub", [scaled, x], node)
        node.input[0] = graph.operator("Sub", [scaled, rest], node)
        graph.change(weight, partial(_short, bits=bits))

    return edit


def quantized(weight: str, bits: int) -> Edit:
    def edit(x: Array) -> Array:
        scale = np.abs(x).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
        return np.round(x / scale) * scale

    return lambda graph, _: graph.change(weight, edit)


def tanh_gelu(which: int | None) -> Edit:
    """The approximation by tanh in place of erf, in one activation or in all."""

    def edit(graph: Edited, _: Strength) -> None:
        erfs = [node for node in graph.model.graph.node if node.op_type == "Erf"]
        for node in erfs if which is None else [erfs[which]]:
            name = node.input[0]
            dtype = _dtype(graph)
            linear, cubic = (graph.constant(dtype(x)) for x in ((4 / np.pi) ** 0.5, 0.08943 * (4 / np.pi) ** 0.5))
            cubed = graph.operator("Mul", [graph.operator("Mul", [name, name], node), cubic], node)
            node.input[0] = graph.operator("Mul", [graph.operator("Add", [cubed, linear], node), name], node)
            node.op_type = "Tanh"

    return edit


def _dtype(graph: Edited) -> Any:
    return helper.tensor_dtype_to_np_dtype(graph.model.graph.output[0].type.tensor_type.elem_type).type


def swapped_heads(weight: str) -> Edit:
    """Two heads, each half of the rows."""

    def edit(graph: Edited, _: Strength) -> None:
        for part in ("weight", "bias"):
            graph.change(f"{weight}.{part}", lambda x: np.roll(x, len(x) // 2, axis=0))

    return edit


def rolled(weight: str) -> Edit:
    return lambda graph, _: graph.change(weight, lambda x: np.roll(x, 1, axis=0))


def zero_rows(weight: str, first: int = 0, stop: int | None = None) -> Edit:
    def edit(x: Array) -> Array:
        return np.where((np.arange(len(x)) >= first) & (np.arange(len(x)) < (stop or len(x))), 0.0, x.T).T

    return lambda graph, _: graph.change(weight, edit)
