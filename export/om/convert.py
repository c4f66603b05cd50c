"""Writes what turns an artifact's ONNX graphs into OM files where CANN is: `om/convert.sh` and `om/README.md`.

`om_files` is a function of the artifact alone: two calls give the same bytes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.om.precision import (
    SOCS,
    WITHOUT_BFLOAT16,
    WITHOUT_FLOAT32_PRODUCTS,
    GraphDtypes,
    graph_dtypes,
    kept_products,
    precision_mode,
)
from runtime.artifact import Artifact
from runtime.ascend import COMPILER_PACKAGES
from runtime.errors import InputError
from runtime.golden import filled_shape
from runtime.manifest import Case, TensorSpec

GOLDEN = "golden.safetensors"
# Modules of packages that are not named like them.
_MODULES = {"attrs": "attr", "ml-dtypes": "ml_dtypes"}
# CANN: "number of gears: (1, 100]".
_MAX_GEARS = 100


@dataclass(frozen=True)
class GraphShapes:
    """How ATC is told of one graph's shapes.

    Attributes
    ----------
    name, file : str
        The graph's name and its ONNX file.
    shape : str
        `--input_shape`, with -1 in the place of each free dimension.
    gears : tuple of tuples of int
        Sizes of the free dimensions, in their order in `shape`, that the golden cases have; empty: none is free.
    dtypes : GraphDtypes
        What decides on its precision.

    """

    name: str
    file: str
    shape: str
    gears: tuple[tuple[int, ...], ...]
    dtypes: GraphDtypes

    def precision(self, *, float32_products: bool) -> str:
        """Return the option for the precision on SoCs that multiply float32, or on those that do not."""
        return precision_mode(self.dtypes, float32_products=float32_products)

    @property
    def kept(self) -> list[str]:
        """The products of float32 that stay so on SoCs that have them."""
        return list(kept_products(self.dtypes, float32_products=True))

    @property
    def options(self) -> list[str]:
        """The options of ATC for fixed shapes, or for one shape per gear."""
        if len(self.gears) == 1:
            return [f"--input_shape={_filled(self.shape, self.gears[0])}"]
        gears = ";".join(",".join(map(str, gear)) for gear in self.gears)
        return [f"--input_shape={self.shape}", *([f"--dynamic_dims={gears}"] if gears else [])]


def om_files(artifact: Artifact) -> dict[str, bytes]:
    """Return the files of the profile om beside the graphs, by their paths in the bundle.

    Raises
    ------
    InputError
        The artifact has no ONNX graphs, or a graph with free dimensions has no golden case or more than 100 shapes.

    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    model = artifact.content.model
    if not model.isprintable():  # it stands in a comment of the script
        raise InputError(f"{artifact.path}: expected a printable model name, found {model!r}; export the model again")
    environment = Environment(
        loader=PackageLoader("export.om"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - a shell script and Markdown
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    environment.filters["quote"] = shlex.quote
    values = {
        "model": model,
        "variant": artifact.content.variant,
        "graphs": graph_shapes(artifact),
        "socs": SOCS,
        "without_float32_products": WITHOUT_FLOAT32_PRODUCTS,
        "without_bfloat16": WITHOUT_BFLOAT16,
        "packages": {_MODULES.get(name, name): name for name in COMPILER_PACKAGES},
    }
    return {
        f"om/{name}": environment.get_template(f"{name}.j2").render(values).encode()
        for name in ("convert.sh", "README.md")
    }


def graph_shapes(artifact: Artifact) -> list[GraphShapes]:
    """Return the shapes of every graph that is there in ONNX, in the order of the manifest.

    A free dimension gets the sizes of the golden cases: at those, and only those, the graph was compared with its
    source.
    """
    content = artifact.content
    stored = _stored_shapes(artifact)
    found = []
    for name, graph in content.graphs.items():
        if "onnx" in graph.files:
            cases = [case for case in content.cases if case.graph == name]
            gears = _gears(artifact, name, graph.inputs, cases, stored)
            shape = ";".join(f"{spec.name}:{','.join(_sizes(spec))}" for spec in graph.inputs)
            dtypes = graph_dtypes(artifact.file(graph.files["onnx"]))
            found.append(GraphShapes(name, graph.files["onnx"], shape, gears, dtypes))
    if not found:
        raise InputError(f"{artifact.path}: expected graphs in ONNX, found none; export with --formats onnx")
    return found


def _sizes(spec: TensorSpec) -> list[str]:
    return [str(size) if isinstance(size, int) else "-1" for size in spec.shape]


def _gears(
    artifact: Artifact, graph: str, inputs: Sequence[TensorSpec], cases: Sequence[Case], stored: Mapping[str, list[int]]
) -> tuple[tuple[int, ...], ...]:
    free = [(spec.name, axis) for spec in inputs for axis, size in enumerate(spec.shape) if isinstance(size, str)]
    if not free:
        return ()
    shapes = [{spec.name: _shape(case, spec, stored) for spec in inputs} for case in cases]
    gears = {tuple(shape[name][axis] for name, axis in free) for shape in shapes}
    if not 1 <= len(gears) <= _MAX_GEARS:
        raise InputError(
            f"{artifact.path}: graph {graph}: expected 1 to {_MAX_GEARS} shapes among its golden cases, found "
            f"{len(gears)}; export the model again"
        )
    return tuple(sorted(gears))


def _shape(case: Case, spec: TensorSpec, stored: Mapping[str, list[int]]) -> Sequence[int]:
    """Return the shape that an input has when its case is run."""
    source = case.inputs[spec.name]
    return stored[source.key] if source.fill is None else filled_shape(stored[source.key], spec)


def _stored_shapes(artifact: Artifact) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(artifact.file(GOLDEN), "numpy") as golden:
        return {key: golden.get_slice(key).get_shape() for key in golden.keys()}  # noqa: SIM118 - not a dict


def _filled(shape: str, gear: Sequence[int]) -> str:
    first, *rest = shape.split("-1")
    return first + "".join(f"{size}{text}" for size, text in zip(gear, rest, strict=True))
