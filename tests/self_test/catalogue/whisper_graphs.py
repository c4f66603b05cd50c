"""Whisper's graphs edited: gains, other constants, rounding where there should be none, lost rows, swapped heads.

Those of the trained models are the prototype's, with what it and the verdict before it caught them at.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import helper

from runtime.manifest import Variant
from self_test.edits import (
    Array,
    added,
    epsilon_added,
    gain,
    product_cut,
    quantized,
    rolled,
    swapped_heads,
    tanh_gelu,
    weight_cut,
    zero_rows,
)
from self_test.known_fault import (
    Edit,
    Edited,
    Graphs,
    Kind,
    KnownFault,
    Reference,
    Scale,
    Select,
    Strength,
    cases_of,
    in_graphs,
)

ENCODER: Graphs = ("encoder",)
STEP: Graphs = ("step",)
PREFILL: Graphs = ("prefill",)
DECODER: Graphs = ("step", "prefill")


def lost_rows(graph: Edited, _: Strength) -> None:
    """The step reads none of the cache from row 40 on."""
    size = next(value for value in graph.model.graph.input if value.name == "self_v_0").type.tensor_type
    rows, dtype = size.shape.dim[2].dim_value, helper.tensor_dtype_to_np_dtype(size.elem_type)
    graph.before_inputs("Mul", "self_v_", (np.arange(rows) < 40).astype(dtype)[None, None, :, None])


def mask_by_one(graph: Edited, _: Strength) -> None:
    """The step does not read the row at its own position."""
    node = next(node for node in graph.model.graph.node if "ge" in node.output)
    node.op_type, node.name = "Greater", "edited mask"


def frames_lost(count: int) -> Edit:
    """Encoder outputs of so many frames are those of the first one."""

    def edit(graph: Edited, _: Strength) -> None:
        for output in list(graph.model.graph.output):
            axis = 1 if output.name == "hidden" else 2
            order = np.arange(output.type.tensor_type.shape.dim[axis].dim_value)
            order[len(order) // 2 : len(order) // 2 + count] = 0
            graph.behind_output(output.name, "Gather", order, axis=axis)

    return edit


def words_rotated(graph: Edited, _: Strength) -> None:
    """The logits of two words that are seldom said."""
    [size] = [x.type.tensor_type.shape.dim[-1].dim_value for x in graph.model.graph.output if x.name == "logits"]
    order = np.arange(size)
    order[[size // 2, size // 2 + 1]] = size // 2 + 1, size // 2
    graph.behind_output("logits", "Gather", order, axis=2)


def symmetric_window(graph: Edited, _: Strength) -> None:
    """Hann's, in the front-end's kernel of cosines and sines."""

    def edit(kernel: Array) -> Array:
        size = kernel.shape[-1]
        angles = np.arange(size // 2 + 1)[:, None] * np.arange(size) % size * (2 * np.pi / size)
        return (np.concatenate([np.cos(angles), np.sin(angles)]) * np.hanning(size))[:, None]

    graph.change("kernel", edit)


def _whisper(model: str, variant: Variant) -> Callable[..., KnownFault]:
    def made(
        name: str, graphs: Graphs, edit: Edit, kind: Kind = "structural", scale: Scale | None = None
    ) -> KnownFault:
        judged: Select = cases_of(*graphs, decisions=graphs[0] in DECODER)
        return KnownFault(
            name, kind, "whisper", model, variant, " and ".join(graphs), in_graphs(graphs, edit), judged, scale
        )

    return made


FIRST, LAST = "encoder.layers.0", "decoder.layers.1"
# Where the search for the weakest begins, as fp32 and fp16 show it.
_POCKET_STRENGTHS: dict[Variant, dict[str, Strength]] = {
    "fp32": {"v_proj": 4e-5, "fc2": 1e-4, "norm": 1e-4, "added": 3e-4, "epsilon": 1e-3, "bits": 2.0**-11},
    "fp16": {"v_proj": 1e-2, "fc2": 1e-2, "norm": 1e-2, "added": 1e-2, "epsilon": 4e-3, "bits": 2.0**-5},
}


def _pocket(variant: Variant) -> list[KnownFault]:
    made, least = _whisper("whisper-pocket", variant), _POCKET_STRENGTHS[variant]
    fc1 = f"{FIRST}.fc1.weight"
    return [
        made("heads swapped", ENCODER, swapped_heads(f"{FIRST}.self_attn.v_proj")),
        made("encoder positions off by one", ENCODER, rolled("encoder.embed_positions.weight")),
        made("step positions off by one", STEP, rolled("decoder.embed_positions.weight")),
        made("prefill positions off by one", PREFILL, rolled("decoder.embed_positions.weight")),
        made("positions off by one in align", ("align",), rolled("decoder.embed_positions.weight")),
        made("cache rows from 40 on never written", STEP, lost_rows),
        made("bias of a query forgotten", ENCODER, zero_rows(f"{FIRST}.self_attn.q_proj.bias")),
        made("bias of the decoder's norm forgotten", DECODER, zero_rows("decoder.layer_norm.bias")),
        made("rows of the vocabulary off by one", DECODER, rolled("decoder.embed_tokens.weight")),
        made(
            "a layer in 8 bits" if variant == "fp32" else "a layer in 7 bits",
            ENCODER,
            quantized(fc1, 8 if variant == "fp32" else 7),
        ),
        made("another epsilon in the decoder", DECODER, epsilon_added, "numeric", Scale(1e-3)),
        made("another epsilon in the encoder", ENCODER, epsilon_added, "numeric", Scale(least["epsilon"])),
        made(
            "gain of a value projection",
            ENCODER,
            gain(f"{FIRST}.self_attn.v_proj.weight"),
            "numeric",
            Scale(least["v_proj"]),
        ),
        made("gain of the decoder's fc2", DECODER, gain(f"{LAST}.fc2.weight"), "numeric", Scale(least["fc2"])),
        made("gain of the last norm", DECODER, gain("decoder.layer_norm.weight"), "numeric", Scale(least["norm"])),
        made("added to a layer's bias", ENCODER, added(f"{FIRST}.fc2.bias"), "numeric", Scale(least["added"])),
        made("a layer's mantissas cut", ENCODER, weight_cut(fc1), "numeric", Scale(least["bits"], finest=2)),
    ]


# Strength and share of the limit: the prototype's catches.txt. That of the epsilon is what is added to 1e-5.
def _seen(
    start: Strength, before: tuple[float, float] | None, new: tuple[float, float] | None, finest: float = 1.2
) -> Scale:
    return Scale(start, finest, before and Reference(*before), new and Reference(*new))


def _bits(before: tuple[int, float] | None, new: tuple[int, float] | None) -> Scale:
    pairs = [seen and (2.0 ** -seen[0], seen[1]) for seen in (before, new)]
    return _seen(pairs[1][0] if pairs[1] else 2.0**-12, pairs[0], pairs[1], 2)


def _trained(model: str, variant: Variant, layers: int, scales: dict[str, Scale]) -> list[KnownFault]:
    made, middle = _whisper(model, variant), f"encoder.layers.{layers // 2}"
    last = f"decoder.layers.{layers - 1}.encoder_attn.out_proj.weight"
    numeric: dict[str, tuple[Graphs, Edit]] = {
        "gain of a middle fc2": (ENCODER, gain(f"{middle}.fc2.weight")),
        "gain of the first value projection": (ENCODER, gain(f"{FIRST}.self_attn.v_proj.weight")),
        "gain of the decoder's fc2": (DECODER, gain(f"{LAST}.fc2.weight")),
        "gain of the last cross-attention": (STEP, gain(last)),
        "gain of the last norm": (DECODER, gain("decoder.layer_norm.weight")),
        "another epsilon in the encoder": (ENCODER, epsilon_added),
        "another epsilon in the decoder": (DECODER, epsilon_added),
        "a middle fc1's product cut": (ENCODER, product_cut(f"{middle}.fc1.weight")),
        "a middle fc1's weight cut": (ENCODER, weight_cut(f"{middle}.fc1.weight")),
        "the first convolution's product cut": (ENCODER, product_cut("encoder.conv1.weight")),
        "the step's fc1's product cut": (STEP, product_cut(f"{LAST}.fc1.weight")),
    }
    return [made(name, *numeric[name], "numeric", scale) for name, scale in scales.items()]


def _trained_structural(model: str, variant: Variant) -> list[KnownFault]:
    made = _whisper(model, variant)
    faults = [
        made("one GELU by tanh", ENCODER, tanh_gelu(3)),
        made("every GELU by tanh", ENCODER, tanh_gelu(None)),
        made("an encoder layer in 8 bits", ENCODER, quantized("encoder.layers.1.fc1.weight", 8)),
        made("a step layer in 8 bits", STEP, quantized(f"{LAST}.fc1.weight", 8)),
        made("the step's mask off by one", STEP, mask_by_one),
        made("one dead encoder position", ENCODER, zero_rows("encoder.embed_positions.weight", 700, 701)),
        made("dead step positions 64 to 223", STEP, zero_rows("decoder.embed_positions.weight", 64, 224)),
        made("a frame replaced by the first", ENCODER, frames_lost(1)),
        made("two words exchanged", DECODER, words_rotated),
    ]
    if variant == "fp32":  # front-ends are the same files in every precision
        faults += [
            made("the step's GELU by tanh", STEP, tanh_gelu(1)),
            made("symmetric window", ("frontend",), symmetric_window),
        ]
    return faults


FAULTS = [
    *_pocket("fp32"),
    *_pocket("fp16"),
    *_trained(
        "whisper-tiny.en",
        "fp32",
        4,
        {
            "gain of a middle fc2": _seen(3e-5, (1e-4, 2.13), (3e-5, 1.93)),
            "gain of the first value projection": _seen(1e-5, (1e-5, 7.48), (1e-5, 2.28)),
            "gain of the decoder's fc2": _seen(3e-5, (1e-4, 2.52), (3e-5, 2.73)),
            "gain of the last cross-attention": _seen(1e-4, (1e-4, 1.35), (1e-4, 2.87)),
            "gain of the last norm": _seen(3e-5, (1e-4, 3.12), (3e-5, 1.57)),
            "another epsilon in the encoder": _seen(1e-6, (1e-5, 45.7), (1e-5, 20.2)),
            "another epsilon in the decoder": _seen(1e-7, (1e-5, 1.31e3), None),
            "a middle fc1's product cut": _bits((14, 1.85), (12, 4.38)),
            "the first convolution's product cut": _bits((18, 3.77), (16, 3.25)),
            "the step's fc1's product cut": _bits((11, 2.0), (14, 1.05)),
        },
    ),
    *_trained_structural("whisper-tiny.en", "fp32"),
    *_trained(
        "whisper-base",
        "fp32",
        6,
        {
            "gain of the first value projection": _seen(1e-5, (1e-5, 4.48), (1e-5, 2.45)),
            "gain of a middle fc2": _seen(3e-5, (1e-4, 1.56), (3e-5, 1.14)),
            "gain of the decoder's fc2": _seen(1e-4, (1e-4, 1.28), (1e-4, 4.3)),
            "a middle fc1's product cut": _bits((12, 3.02), (12, 2.12)),
            "the step's fc1's product cut": _bits(None, (12, 1.58)),
        },
    ),
    *_trained(
        "whisper-tiny.en",
        "fp16",
        4,
        {
            "gain of a middle fc2": _seen(5e-3, (5e-3, 1.6), (5e-3, 4.25)),
            "gain of the first value projection": _seen(1e-3, (2e-3, 1.38), (1e-3, 1.17)),
            "gain of the decoder's fc2": _seen(2e-3, (1e-3, 1.39), (2e-3, 1.73)),
            "gain of the last cross-attention": _seen(5e-3, (1e-3, 1.23), (5e-3, 1.27)),
            "gain of the last norm": _seen(1e-3, (1e-3, 1.14), (1e-3, 1.46)),
            "a middle fc1's weight cut": _bits((6, 1.1), (6, 1.81)),
        },
    ),
    *_trained_structural("whisper-tiny.en", "fp16"),
]
