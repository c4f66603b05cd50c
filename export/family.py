"""What export knows of a family, and what the pipeline asks of one of its models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from export.golden import Clip, Golden
from export.graphs import GraphDefinition
from export.parity import SourceModel
from export.safetensors_writer import TensorInfo
from export.weights import Weights
from runtime.artifact import Artifact
from runtime.engines.base import Engine

SourceT = TypeVar("SourceT")


class FamilyModel(Protocol):
    """One model: what the pipeline asks of its family.

    `dims`, `frontend` and `settings` go into the manifest. `tensors` are the parameters, under the names that the
    graphs give them; those named in `float32` keep that dtype in every variant. `side_files` lie beside the graphs;
    `source_files` are those of the checkpoint that were read. `seed` is that of random weights, None for a checkpoint.
    `languages` are the codes of those that the model writes as they are spoken, None where the checkpoint does not say.
    `taken` says in words, for a person, what the checkpoint was taken for: tokenizer, languages, defaults.
    `notes` tell the user, a line each, what the checkpoint states and the artifact does not honour, or what it assumes.
    """

    dims: dict[str, int]
    frontend: dict[str, Any]
    settings: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    float32: frozenset[str]
    side_files: Mapping[str, bytes]
    source_files: tuple[Path, ...]
    seed: int | None
    languages: frozenset[str] | None
    taken: tuple[str, ...]
    notes: tuple[str, ...]

    def read(self, name: str) -> torch.Tensor:
        """Return one parameter as the checkpoint stores it."""

    def graphs(self, dtype: torch.dtype, weights: Path | None) -> dict[str, GraphDefinition]:
        """Return the graphs with the parameters of a weights.safetensors, or on the meta device."""

    def golden(self, artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
        """Return golden cases and recordings, computed by `engine` from the fp32 graphs of `artifact`."""

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
        Those that it reads: `model_type` of a config.json, one of its `architectures`, a file's suffix, or the
        program that wrote it. Relatives among them it refuses with what they lack here.
    open : callable
        Opens a checkpoint, or makes random weights.
    layouts : callable or None
        Returns the layouts of other packages that its models are written in; loaded when it is asked for.

    """

    task: str
    checkpoints: tuple[str, ...]
    open: Callable[[Weights], FamilyModel]
    layouts: Callable[[], Layouts[Any]] | None = None
