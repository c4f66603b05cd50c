"""Cnn8Rnn as the export pipeline sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from export.families.cnn8rnn.checkpoint import Cnn8RnnCheckpoint, constants, folded, parameter_shapes
from export.families.cnn8rnn.graphs import cnn8rnn_graphs
from export.families.cnn8rnn.modules import FLOAT32, Cnn8Rnn
from export.families.cnn8rnn.standin import RandomCnn8Rnn
from export.family import FamilyModel
from export.golden import Clip, Golden
from export.graphs import GraphDefinition
from export.parity import SourceModel
from export.safetensors_writer import TensorInfo
from export.weights import Weights
from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.errors import InputError
from runtime.families.cnn8rnn.settings import GATES, HEAD, RECURRENCE, Cnn8RnnDims


class _Folded:
    """The checkpoint's parameters, its normalisations folded into the convolutions."""

    def __init__(self, checkpoint: Cnn8RnnCheckpoint | RandomCnn8Rnn) -> None:
        self._checkpoint = checkpoint
        self.files = checkpoint.files
        self.tensors = {
            name: TensorInfo(torch.float32, shape) for name, shape in parameter_shapes(checkpoint.dims).items()
        }

    def read(self, name: str) -> torch.Tensor:
        """Return one parameter."""
        return folded(self._checkpoint, name)


class Cnn8RnnModel(FamilyModel):
    """A Cnn8Rnn checkpoint, or random weights."""

    float32 = FLOAT32
    encoders = frozenset({GATES, RECURRENCE, HEAD})

    def __init__(self, weights: Weights) -> None:
        if weights.adapter is not None:
            raise InputError(
                f"{weights.adapter}: a PEFT adapter, which this family has none of; give the weights alone"
            )
        made: Cnn8RnnCheckpoint | RandomCnn8Rnn
        made = Cnn8RnnCheckpoint(weights.path) if weights.path else RandomCnn8Rnn(Cnn8RnnDims(**weights.sizes))
        self._checkpoint = made
        super().__init__(
            weights,
            made,
            side_files={made.settings.classes_file: "".join(f"{label}\n" for label in made.labels).encode()},
            taken=(f"{len(made.labels)} classes of sounds",),
            parameters=_Folded(made),
        )

    def network(self, dtype: torch.dtype) -> Cnn8Rnn:
        """Return the network; see FamilyModel."""
        return Cnn8Rnn(self._checkpoint.dims, dtype)

    def graphs_of(self, network: Cnn8Rnn, dtype: torch.dtype) -> dict[str, GraphDefinition]:
        """Return the graphs; see export/families/cnn8rnn/graphs.py."""
        checkpoint = self._checkpoint
        return cnn8rnn_graphs(network, constants(checkpoint), checkpoint.dims, checkpoint.frontend, dtype)

    def golden(self, artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
        """Return the cases of export/families/cnn8rnn/cases.py."""
        from export.families.cnn8rnn.cases import cnn8rnn_golden

        return cnn8rnn_golden(artifact, engine, clips)

    def source(self, weights: Path) -> SourceModel:  # noqa: ARG002 - it holds folded weights, the source is unfolded
        """Return the network as its authors wrote it."""
        from export.families.cnn8rnn.source import SourceCnn8Rnn

        return SourceCnn8Rnn(self._checkpoint)
