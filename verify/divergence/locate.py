"""Finds where an engine's graph leaves the reference: the same graph as ONNX, by ONNX Runtime on the CPU.

Both return the values that they have in common. Each of them is then computed by the reference once more from the
engine's own values before it. That tells what is wrong there from what was handed on and amplified: where an operator
is wrong, it is so on the inputs that it was given. Values are taken a few at a time, so that memory stays bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from safetensors import safe_open

from runtime.artifact import Artifact
from runtime.engines import ENGINES
from runtime.engines.base import Array, Engine
from runtime.engines.onnxruntime import OnnxRuntimeEngine
from runtime.errors import InputError
from runtime.golden import Golden, kept, run_case
from runtime.manifest import Case, Format, Variant
from verify.diverged import Divergence, Place
from verify.divergence.graph import FrozenGraph, in_common, onnx_graph, program_graph, torchscript_graph
from verify.divergence.tapped import tapped
from verify.results import CaseAccuracy

WEIGHTS = "weights.safetensors"
# What kernels of one precision differ by in one operator; ten times the graph's own lower quartile is allowed, too.
_ROUNDING: dict[Variant, float] = {"fp32": 5e-6, "fp16": 5e-3, "bf16": 4e-2}
_OVER_USUAL = 10.0
_BYTES = 2**28
_GRAPHS = 3
_ARRANGING = {"Cast", "Constant", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
Opener = Callable[[Artifact], Engine]


def find_divergences(
    artifact: Artifact, engine: str, open_engine: Opener, judged: Sequence[CaseAccuracy], reference: Artifact
) -> Iterator[Divergence]:
    """Yield where an engine leaves the reference: in graphs that it failed in, or in the case nearest to its limits.

    Raises
    ------
    InputError
        `reference` is the artifact itself, and its ONNX graphs are what is run, or are not golden's either.

    """
    form = ENGINES[engine].format
    cases = {case.name: case for case in artifact.content.cases}
    for name in _worst(judged):
        case = cases[name]
        if reference.path == artifact.path:
            _check_reference(artifact, form, case)
        yield locate(artifact, form, case, open_engine, reference)


def _worst(judged: Sequence[CaseAccuracy]) -> list[str]:
    """Return the worst case of each graph that failed, worst first; the worst of all where none did."""
    shares = {case.case: _share(case) for case in judged if case.outputs}
    graphs = {case.case: case.graph for case in judged}
    order = sorted(shares, key=lambda name: -shares[name])
    failed = [name for name in order if shares[name] > 1]
    first = {graphs[name]: name for name in reversed(failed)}
    return [name for name in failed if first[graphs[name]] == name][:_GRAPHS] or order[:1]


def _share(case: CaseAccuracy) -> float:
    return max(
        math.inf if output.problem else max((one.share for one in output.judged), default=0.0)
        for output in case.outputs
    )


def _check_reference(artifact: Artifact, form: Format, case: Case) -> None:
    """Refuse the artifact's own ONNX graph as a reference where that is in doubt."""
    found = "the ONNX graph itself is what is run"
    if form != "onnx" and artifact.content.variant != "bf16":
        graph, golden = artifact.content.graphs[case.graph], Golden(artifact)
        outputs = run_case(OnnxRuntimeEngine(artifact, threads=1, lean=True), graph, golden, case)
        off = [
            name
            for name, stored in case.outputs.items()
            if _distance(kept(outputs[name], stored), golden.output(stored)) > _ROUNDING[artifact.content.variant] * 10
        ]
        if not off:
            return
        found = f"the ONNX graph is not golden's either ({off[0]} of {case.name})"
    raise InputError(f"--locate: expected a graph to compare with, found that {found}; name the checkpoint by --source")


def locate(artifact: Artifact, form: Format, case: Case, open_engine: Opener, reference: Artifact) -> Divergence:
    """Return the values inside a case's graph, and how far off the engine's are.

    Parameters
    ----------
    artifact : Artifact
        What is run.
    form : str
        The format that the engine reads.
    case : Case
        Gives the graph its inputs.
    open_engine : callable
        Opens the engine on an artifact.
    reference : Artifact
        Its ONNX graph is right. The artifact itself, unless that is what is run.

    Raises
    ------
    InputError
        `reference` has no ONNX graphs, or none that ONNX Runtime computes (bf16).

    """
    if "onnx" not in reference.content.graphs[case.graph].files or reference.content.variant == "bf16":
        raise InputError(
            f"{reference.path}: expected ONNX graphs in fp32 or fp16 to compare with; name the checkpoint by --source"
        )
    return _Search(artifact, form, case, open_engine, reference).run()


class _Search:
    def __init__(self, artifact: Artifact, form: Format, case: Case, open_engine: Opener, reference: Artifact) -> None:
        self.artifact, self.form, self.case, self.open_engine = artifact, form, case, open_engine
        self.reference = reference
        self.signature = reference.content.graphs[case.graph]
        self.model = onnx.load(str(reference.file(self.signature.files["onnx"])), load_external_data=False)
        self.parameters = _parameters(reference)
        self.graph = onnx_graph(self.model, self.parameters)
        self.inputs = Golden(artifact).inputs(case)

    def run(self) -> Divergence:
        """Compare all values, a group at a time."""
        static = all(isinstance(size, int) for spec in self.signature.inputs for size in spec.shape)
        common = in_common(self.graph, self._candidate(), static=static)
        self.shapes, sizes = {}, {}
        for value, array in zip(common, self._reference(list(common)), strict=True):
            if array.dtype.kind == "f":
                self.shapes[value], sizes[value] = (array.shape, array.dtype), array.nbytes
        common = {value: common[value] for value in sizes}
        found: list[tuple[str, float, float]] = []
        for group in _groups(sizes, _BYTES):
            found += self._compared(group, common)
        usual = sorted(local for *_, local in found)[len(found) // 4] if found else 0.0
        limit = max(_ROUNDING[self.artifact.content.variant], _OVER_USUAL * usual)
        places = [
            Place(
                module=self.graph.modules[self.graph.producers[value]],
                operator=self._operators(value, common),
                node=value,
                total=total,
                local=local,
                limit=limit,
            )
            for value, total, local in found
        ]
        return Divergence(
            graph=self.case.graph,
            case=self.case.name,
            reference=f"{self.reference.path.name}/{self.case.graph}.onnx, ONNX Runtime on the CPU",
            places=tuple(places),
        )

    def _operators(self, value: str, common: Mapping[str, str]) -> str:
        """Return the operators between a value and the known ones before it, but for those that only arrange."""
        kinds = [self.graph.nodes[place].operator for place in self._segment(value, common.keys())[0]]
        computing = [kind for kind in dict.fromkeys(kinds) if kind not in _ARRANGING]
        return ", ".join(computing or kinds[-1:])

    def _candidate(self) -> FrozenGraph:
        path = self.artifact.file(self.artifact.content.graphs[self.case.graph].files[self.form])
        if self.form == "onnx":
            return onnx_graph(onnx.load(str(path), load_external_data=False), self.parameters)
        import torch

        if self.form == "pt2":
            return program_graph(torch.export.load(path), self.parameters)
        load: Callable[..., torch.jit.ScriptModule] = torch.jit.load
        method = load(path, map_location="meta")._c._get_method(self.case.graph)  # noqa: SLF001
        return torchscript_graph(method.graph, self.parameters)

    def _reference(self, values: Sequence[str]) -> list[Array]:
        with tapped(self.reference, self.case.graph, "onnx", values) as artifact:
            engine = OnnxRuntimeEngine(artifact, threads=1, lean=True)
            return _tapped_values(engine, artifact, self.case.graph, self.inputs, len(values))

    def _engine(self, values: Sequence[str]) -> list[Array]:
        with tapped(self.artifact, self.case.graph, self.form, values) as artifact:
            engine = self.open_engine(artifact)
            try:
                return _tapped_values(engine, artifact, self.case.graph, self.inputs, len(values))
            finally:
                engine.close()

    def _compared(self, group: Sequence[str], common: Mapping[str, str]) -> Iterator[tuple[str, float, float]]:
        """Yield each value of a group with its total and local error."""
        segments = {value: self._segment(value, common.keys()) for value in group}
        before = list(dict.fromkeys(read for nodes_read in segments.values() for read in nodes_read[1]))
        wanted = list(dict.fromkeys([*before, *group]))
        engine_s = self._engine([common[value] for value in wanted])
        # Two formats may shape a value otherwise: a linear layer's rows.
        theirs = {}
        for value, array in zip(wanted, engine_s, strict=True):
            shape, dtype = self.shapes[value]
            theirs[value] = array.reshape(shape).astype(dtype)
        for value, ours in zip(group, self._reference(group), strict=True):
            nodes, read = segments[value]
            local = self._computed(value, nodes, {name: theirs[name] for name in read})
            yield value, _distance(theirs[value], ours), _distance(theirs[value], local)

    def _segment(self, value: str, known: Container[str]) -> tuple[list[int], list[str]]:
        """Return the nodes that compute a value, and the known values before them."""
        nodes: set[int] = set()
        read: dict[str, None] = {}
        open_values = [value]
        while open_values:
            place = self.graph.producers.get(open_values.pop())
            if place is None or place in nodes:
                continue
            nodes.add(place)
            for name in self.graph.nodes[place].inputs:
                if name in known:
                    read[name] = None
                else:
                    open_values.append(name)
        return sorted(nodes), list(read)

    def _computed(self, value: str, nodes: Sequence[int], given: Mapping[str, Array]) -> Array:
        """Return a value as the reference computes it from others."""
        chosen = [self.model.graph.node[place] for place in nodes]
        read = {name for node in chosen for name in node.input}
        held = [tensor for tensor in self.model.graph.initializer if tensor.name in read]
        inputs = [spec for spec in self.model.graph.input if spec.name in read]
        dtypes = {spec.name: spec.dtype for spec in self.signature.inputs}
        feed: dict[str, Array] = {spec.name: self.inputs[spec.name].astype(dtypes[spec.name]) for spec in inputs}
        for name, array in given.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            inputs.append(onnx.helper.make_tensor_value_info(name, kind, None))
            feed[name] = array
        small = onnx.ModelProto()
        small.CopyFrom(self.model)
        del small.graph.node[:], small.graph.initializer[:], small.graph.input[:], small.graph.output[:]
        del small.graph.value_info[:]
        small.graph.node.extend(chosen)
        small.graph.input.extend(inputs)
        small.graph.output.append(onnx.ValueInfoProto(name=value))
        for tensor in held:
            small.graph.initializer.append(tensor)
            if uses_external_data(tensor):
                load_external_data_for_tensor(small.graph.initializer[-1], str(self.reference.path))
                small.graph.initializer[-1].data_location = onnx.TensorProto.DEFAULT
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result: Array = session.run([value], feed)[0]
        return result


def _parameters(artifact: Artifact) -> frozenset[str]:
    with safe_open(str(artifact.file(WEIGHTS)), framework="np") as file:
        return frozenset(file.keys())


def _groups(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Yield values in order, together at most `limit` bytes, one at least."""
    group: list[str] = []
    total = 0
    for value, size in sizes.items():
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(value)
        total += size
    if group:
        yield group


def _tapped_values(
    engine: Engine, artifact: Artifact, graph: str, inputs: Mapping[str, Array], count: int
) -> list[Array]:
    dtypes = {spec.name: spec.dtype for spec in artifact.content.graphs[graph].inputs}
    outputs = engine.run(graph, {name: engine.put(array, dtypes[name]) for name, array in inputs.items()})
    return [engine.get(outputs[f"tap_{place}"]) for place in range(count)]


def _distance(found: Array, expected: Array) -> float:
    """Return the relative L2 distance of two arrays of as many elements, whatever their shapes."""
    one, other = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    error, norm = float(np.linalg.norm(one - other)), float(np.linalg.norm(other))
    if not np.isfinite(error):
        return float("inf")
    return error / norm if norm else (0.0 if error == 0 else float("inf"))
