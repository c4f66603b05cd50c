"""An artifact whose graphs are stood in for by export's modules, run eagerly, so that bugs can be put into weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from export.graphs import TORCH_DTYPES, GraphDefinition
from runtime.artifact import Artifact
from runtime.engines.base import Engine
from verify.accuracy import judge_engine
from verify.faults import Arrays, Fault, FaultyEngine, RunGraph
from verify.results import EngineAccuracy


@dataclass(frozen=True)
class Subject:
    """An artifact, an engine that runs it, and its modules on its weights."""

    artifact: Artifact
    engine: Engine
    graphs: dict[str, GraphDefinition]

    @property
    def errors(self) -> str:
        """The gates that errors of the graphs below float32 have to fail."""
        return "structure" if self.artifact.content.variant == "fp32" else "precision"

    def judged(self, fault: Fault, *names: str) -> EngineAccuracy:
        """Judge by the cases of the faulty graph, unless names are given."""
        selected = set(names) or {c.name for c in self.artifact.content.cases if c.graph == fault.graph}
        return judge_engine(self.artifact, FaultyEngine(self.engine, self.artifact, fault), selected=selected)[0]

    def eager(self, graph: str) -> Callable[[RunGraph, Arrays], Arrays]:
        """Return a stand-in for the frozen graph: the module, run by torch."""
        definition = self.graphs[graph]

        def call(_: RunGraph, inputs: Arrays) -> Arrays:
            values = [torch.from_numpy(inputs[spec.name]).to(TORCH_DTYPES[spec.dtype]) for spec in definition.inputs]
            with torch.no_grad():
                outputs = definition.module(*values)
            tensors = outputs if isinstance(outputs, tuple) else (outputs,)
            return {
                spec.name: (tensor.float() if spec.dtype == "bfloat16" else tensor).numpy()
                for spec, tensor in zip(definition.outputs, tensors, strict=True)
            }

        return call


def failed(accuracy: EngineAccuracy) -> set[str]:
    return {gate.name for gate in accuracy.gates if gate.passed is False}
