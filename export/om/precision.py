"""In which precision ATC is to compile a graph: by what the SoC's units compute and what the graph holds.

ATC's default makes float32 float16. Its documents (CANN, ge: docs/zh/user_guides/atc_tools/CLI_options,
--precision_mode.md, --precision_mode_v2.md, --customize_dtypes.md) say of the modes used here:

- `origin` keeps every dtype; an operator of float32 that the AI Core has in float16 alone goes to an AI CPU operator,
  and where there is none ATC ends with an error.
- `cube_fp16in_fp32out`: products read float16 and write float32, or what comes nearest; all else is float32.
- `allow_fp32_to_fp16`: products of float32 become float16, but for those that a list of `--customize_dtypes` names;
  all else keeps its dtype, and becomes float16 where float32 is not to be had.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.om.operators import FLOAT16_ONLY, PRODUCTS
from runtime.errors import InputError

if TYPE_CHECKING:
    import onnx

# As CANN spells them: hicann/runtime, src/platform/platform_config/cann/Ascend<name>.ini, but for the older chips'
# files. npu-smi prints the same names, on 910_93 in two parts (--soc_version.md).
SOCS = (
    *("310B1", "310B2", "310B3", "310B4", "310P1", "310P3", "310P5", "310P7"),
    *("910B1", "910B2", "910B2C", "910B3", "910B4", "910B4-1"),
    *("910_9362", "910_9372", "910_9381", "910_9382", "910_9391", "910_9392"),
)
# `Intrinsic_mmad` of the same files: f322f32 on 310B, 910B and 910_93; no float32 on 310P, whose cube reads float16.
WITHOUT_FLOAT32_PRODUCTS = "310P"
# Vector units without bfloat16 (`Intrinsic_vadd`); the cube of 310B has it, and that of 310P has not.
WITHOUT_BFLOAT16 = ("310B", "310P")
_FLOAT, _FLOAT16 = 1, 10  # onnx.TensorProto


def soc_of(name: str) -> str:
    """Return the SoC's name without `Ascend`.

    Raises
    ------
    InputError
        CANN has no such SoC, or no model of ours was ever meant for it.

    """
    soc = name.removeprefix("Ascend")
    if soc not in SOCS:
        raise InputError(f"SOC: expected one of {', '.join(SOCS)}, found {name!r}")
    return soc


@dataclass(frozen=True)
class GraphDtypes:
    """What of a graph decides on its precision.

    Attributes
    ----------
    products : tuple of str
        Lines for `--customize_dtypes` that keep each matrix product of float32.
    float16_only : tuple of str
        Nodes in float32 whose operator CANN has in float16 alone.
    mixed : bool
        There is float16 beside float32.

    """

    products: tuple[str, ...]
    float16_only: tuple[str, ...]
    mixed: bool


def graph_dtypes(path: Path) -> GraphDtypes:
    """Return what a graph's file holds; weights beside it are not read.

    Raises
    ------
    InputError
        Its types do not fit its operators.

    """
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False)).graph
    except onnx.shape_inference.InferenceError as error:
        raise InputError(f"{path}: expected a graph whose types fit, found {str(error).splitlines()[0]}") from error
    dtypes = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)
    }
    dtypes |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    float32 = [node for node in graph.node if any(dtypes.get(name) == _FLOAT for name in node.input)]
    return GraphDtypes(
        products=tuple(_kept(node) for node in float32 if node.op_type in PRODUCTS),
        float16_only=tuple(node.name for node in float32 if node.op_type in FLOAT16_ONLY),
        mixed=_FLOAT16 in dtypes.values(),
    )


def _kept(node: onnx.NodeProto) -> str:
    inputs = ",".join(["float32"] * sum(bool(name) for name in node.input))
    return f"{node.name}::InputDtype:{inputs},OutputDtype:float32"


def precision_mode(graph: GraphDtypes, *, float32_products: bool) -> str:
    """Return ATC's option for a graph on a SoC whose cube multiplies float32, or not."""
    lowered = bool(graph.products) and not float32_products
    if lowered and not graph.mixed:
        return "--precision_mode_v2=cube_fp16in_fp32out"
    if lowered or graph.float16_only:
        return "--precision_mode=allow_fp32_to_fp16"
    return "--precision_mode_v2=origin"


def kept_products(graph: GraphDtypes, *, float32_products: bool) -> Iterator[str]:
    """Yield the lines of `--customize_dtypes` beside that option: float32 stays where the cube has it."""
    if float32_products and graph.float16_only:
        yield from graph.products
