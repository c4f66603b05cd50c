"""What export knows of a family, and what the pipeline asks of one of its models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from pydantic import BaseModel
from torch import nn

from export.checkpoint import SEED, Checkpoint
from export.golden import Clip, Golden
from export.graphs import GraphDefinition, load_mapped
from export.parity import SourceModel
from export.registry import DEFAULT_RECORDINGS
from export.weights import Weights
from runtime.artifact import Artifact
from runtime.engines.base import Engine

SourceT = TypeVar("SourceT")


class FamilyCheckpoint(Checkpoint, Protocol):
    """A checkpoint as its family opens it, or random weights in its place."""

    @property
    def dims(self) -> BaseModel:
        """The network, for the manifest."""

    @property
    def frontend(self) -> BaseModel:
        """Its features, for the manifest."""

    @property
    def settings(self) -> BaseModel:
        """How to decode, for the manifest."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What it states and the artifact does not honour, or what was assumed, a line each for the user."""


class FamilyModel(ABC):
    """One model: what the pipeline asks of its family.

    Parameters
    ----------
    weights : Weights
        Where the checkpoint is; without a path they are random.
    checkpoint : FamilyCheckpoint
        What the family opened or made of it.
    side_files : mapping of str to bytes
        What lies beside the graphs.
    taken : tuple of str
        What the checkpoint was taken for, in words for a person: tokenizer, languages, defaults.
    languages : frozenset of str or None
        Codes of those that the model writes as they are spoken, None where the checkpoint does not say.
    parameters : Checkpoint, optional
        Those of the graphs, where they are not the checkpoint's as they stand.

    Attributes
    ----------
    seed : int or None
        Of random weights, None for a checkpoint.

    """

    # Parameters that keep float32 in every variant.
    float32: frozenset[str] = frozenset()
    # Graphs of many rows a call: what rounding costs them depends on the case, that of the others on the graph.
    encoders: frozenset[str] = frozenset()
    # Outputs that a softmax follows.
    logits: frozenset[str] = frozenset()
    # Files of samples/ that a checkpoint is heard with which the registry does not know.
    recordings: tuple[str, ...] = DEFAULT_RECORDINGS

    def __init__(
        self,
        weights: Weights,
        checkpoint: FamilyCheckpoint,
        *,
        side_files: Mapping[str, bytes],
        taken: tuple[str, ...],
        languages: frozenset[str] | None = None,
        parameters: Checkpoint | None = None,
    ) -> None:
        self.dims: dict[str, int] = checkpoint.dims.model_dump()
        self.frontend: dict[str, Any] = checkpoint.frontend.model_dump(mode="json")
        self.settings: dict[str, Any] = checkpoint.settings.model_dump(mode="json")
        self._parameters = parameters or checkpoint
        self.tensors, self.source_files = self._parameters.tensors, self._parameters.files
        self.side_files = side_files
        self.seed = SEED if weights.path is None else None
        self.taken, self.notes = taken, checkpoint.notes
        self.languages = languages

    def read(self, name: str) -> torch.Tensor:
        """Return one parameter as the checkpoint stores it."""
        return self._parameters.read(name)

    def graphs(self, dtype: torch.dtype, weights: Path | None) -> dict[str, GraphDefinition]:
        """Return the graphs with the parameters of a weights.safetensors, or on the meta device."""
        with torch.device("meta"):
            network = self.network(dtype)
        if weights is not None:
            load_mapped(network, weights)
        return self.graphs_of(network, dtype)

    @abstractmethod
    def network(self, dtype: torch.dtype) -> nn.Module:
        """Return the network with parameters of that type, all but those in `float32`."""

    @abstractmethod
    def graphs_of(self, network: Any, dtype: torch.dtype) -> dict[str, GraphDefinition]:
        """Return the graphs of what `network` returned; the family's graphs.py says which."""

    @abstractmethod
    def golden(self, artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
        """Return golden cases and recordings, as the family's cases.py makes them.

        Parameters
        ----------
        artifact : Artifact
            With fp32 graphs; the rest of it may be unfinished.
        engine : Engine
            Its graphs, by which all is computed.
        clips : sequence of Clip
            Recordings, heard with the default options and, where the family says so, with others.

        """

    @abstractmethod
    def source(self, weights: Path) -> SourceModel:
        """Return the source implementation with the checkpoint's parameters (`weights` holds them in fp32)."""


@dataclass(frozen=True)
class Layout(Generic[SourceT]):
    """What another package loads.

    `weights` is the file of all parameters, to which the graphs refer; `check` raises InputError where the package
    cannot run the network as it was trained; `write` writes graphs and side files into the folder of the weights.
    """

    weights: str
    check: Callable[[SourceT], None]
    write: Callable[[SourceT, Path], None]


@dataclass(frozen=True)
class Layouts(Generic[SourceT]):
    """A family's layouts by name, and how to make what they are written from."""

    source: Callable[[Weights, FamilyModel], SourceT]
    by_name: Mapping[str, Layout[SourceT]]


@dataclass(frozen=True)
class Family:
    """What export knows of a family: one such object in `family.py` of its folder.

    Attributes
    ----------
    task : str
        What its models do, by the hub's name.
    checkpoints : tuple of str
        Those that it reads: `model_type` of a config.json, one of its `architectures`, the class of a .nemo file, a
        file's suffix, or the program that wrote it. What several families read belongs to the first of them. Relatives
        among them it refuses with what they lack here.
    open : callable
        Opens a checkpoint, or makes random weights.
    layouts : callable or None
        Returns the layouts of other packages that its models are written in; loaded when it is asked for.
    head : str or None
        What it decodes with, where a checkpoint may have several heads; `export --head` asks for it.

    """

    task: str
    checkpoints: tuple[str, ...]
    open: Callable[[Weights], FamilyModel]
    layouts: Callable[[], Layouts[Any]] | None = None
    head: str | None = None
