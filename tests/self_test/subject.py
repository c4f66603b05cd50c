"""What a fault is put into: an artifact on an engine, and the modules that its graphs were made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from export.graphs import TORCH_DTYPES, GraphDefinition
from runtime.artifact import Artifact
from runtime.engines.base import Engine
from verify.accuracy import judge_engine
from verify.faults import Arrays, Fault, FaultyEngine, RunGraph
from verify.results import EngineAccuracy

Run: TypeAlias = Callable[[RunGraph, Arrays], Arrays]

ENGINES = {"fp32": "onnxruntime", "fp16": "onnxruntime", "bf16": "torchscript"}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Subject:
    """An artifact, an engine that runs it, its modules on its weights, and export's model of its checkpoint.

    A fault may change `graphs`: they are made anew for the next one. `scratch` takes edited copies.
    """

    artifact: Artifact
    engine: Engine
    graphs: dict[str, GraphDefinition] = field(default_factory=dict)
    model: Any = None
    scratch: Path | None = None

    @property
    def errors(self) -> str:
        """The gates that errors of the graphs below float32 have to fail."""
        return "structure" if self.artifact.content.variant == "fp32" else "precision"

    def judged(self, fault: Fault, *names: str) -> EngineAccuracy:
        """Judge by the cases of the faulty graph, unless names are given."""
        selected = set(names) or {c.name for c in self.artifact.content.cases if c.graph == fault.graph}
        return judge_engine(self.artifact, FaultyEngine(self.engine, self.artifact, fault), selected=selected)[0]

    def eager(self, graph: str) -> Run:
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
    """Return the gates that failed."""
    return {gate.name for gate in accuracy.gates if gate.passed is False}
