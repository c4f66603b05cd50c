"""Compares golden outputs with the source implementation's on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from export.golden import Clip, Golden
from runtime.engines.base import Array, Floats
from runtime.errors import GateError
from runtime.manifest import Case, Parity, Recording, SourceParity, TeacherForced

LIMIT_RELATIVE_L2 = 1e-4


class SourceModel(Protocol):
    """The implementation that the checkpoint comes from."""

    implementation: str

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return what the source computes where the graph `graph` does: its outputs by the graph's names.

        `inputs` are a case's stored ones: kv caches have only the rows that the graph may read.
        """

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in `dtype` from now on, all but a front-end."""

    def agrees(self, path: Path, recording: Recording) -> bool:
        """Return whether the source hears in the file `path` what the golden run heard, by the same options."""


@runtime_checkable
class SpeechSource(Protocol):
    """A source that chooses tokens."""

    def teacher_forced(self, golden: Golden, run: TeacherForced) -> Floats:
        """Return its logits f32 [n, V] along a teacher-forced run."""


def tensors_of(inputs: Mapping[str, Array], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return arrays as tensors, those of floats in `dtype`."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def arrays_of(outputs: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Return tensors as arrays, those of floats in float32."""
    return {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in outputs.items()}


def source_parity(
    golden: Golden,
    source: SourceModel,
    clips: Sequence[Clip],
    where: str,
    computed: Callable[[Case, Mapping[str, Array]], None] = lambda _case, _outputs: None,
    *,
    outcome: str = "nothing was exported",
) -> SourceParity:
    """Compare every golden output, and the result of every recording, with the source's.

    Parameters
    ----------
    golden : Golden
        Cases and recordings.
    source : SourceModel
        The source implementation with the same weights.
    clips : Sequence[Clip]
        The recordings' files.
    where : str
        What is exported, for messages.
    computed : Callable, optional
        Told the source's outputs of each case.
    outcome : str
        What a difference means, for messages.

    Raises
    ------
    GateError
        An output's relative L2 distance is above the limit (the message names the worst), or the source hears
        something else in a recording than the golden run did.

    """
    distances: dict[tuple[str, str], tuple[float, float]] = {}
    for case in golden.cases:
        outputs = source.run(case.graph, golden.inputs(case))
        computed(case, outputs)
        for name, stored in case.outputs.items():
            reference = outputs[name][..., :: stored.stride, :] if stored.stride > 1 else outputs[name]
            distances[case.name, name] = distance(golden.arrays[stored.key], reference)
    worst = max(distances, key=lambda place: distances[place])
    relative_l2, _ = distances[worst]
    if relative_l2 > LIMIT_RELATIVE_L2:
        raise GateError(
            f"{where}: case {worst[0]}, output {worst[1]}: relative L2 {relative_l2:.3g} from "
            f"{source.implementation}, limit {LIMIT_RELATIVE_L2:g}; {outcome}: the graphs do not compute "
            "what the source model does"
        )
    _check_forced(golden, source, where, outcome)
    paths = {clip.file: clip.path for clip in clips}
    agreed = {recording.name: source.agrees(paths[recording.file], recording) for recording in golden.recordings}
    for recording in golden.recordings:
        if not agreed[recording.name]:
            heard = recording.result.get("text", recording.result)
            raise GateError(
                f"{where}: {recording.name}: {source.implementation} hears something else than {heard!r:.200}; "
                f"{outcome}: tokenizer, decoding or graphs are not the source model's"
            )
    return SourceParity(
        implementation=source.implementation,
        limit_relative_l2=LIMIT_RELATIVE_L2,
        outputs=tuple(
            Parity(case=case, output=output, relative_l2=relative_l2, max_relative=max_relative)
            for (case, output), (relative_l2, max_relative) in distances.items()
        ),
        results_equal=agreed,
    )


def _check_forced(golden: Golden, source: SourceModel, where: str, outcome: str) -> None:
    """Refuse logits along a teacher-forced run that are not the source's: its error there becomes a limit."""
    if not isinstance(source, SpeechSource):
        return
    for run in golden.teacher_forced:
        relative_l2, _ = distance(golden.arrays[run.logits], source.teacher_forced(golden, run))
        if relative_l2 > LIMIT_RELATIVE_L2:
            raise GateError(
                f"{where}: teacher-forced run {run.name}: relative L2 {relative_l2:.3g} from {source.implementation}, "
                f"limit {LIMIT_RELATIVE_L2:g}; {outcome}: the graphs do not decode as the source model does"
            )


def distance(golden: Array, source: Array) -> tuple[float, float]:
    """Return relative L2 distance, and the largest difference over the source's largest value.

    Another shape, a NaN or an infinity is infinitely far. Where the source is all zeros distances are absolute.
    """
    if golden.shape != source.shape or not (np.isfinite(golden).all() and np.isfinite(source).all()):
        return math.inf, math.inf
    source = source.astype(np.float64)
    difference = golden.astype(np.float64) - source
    norm, largest = float(np.linalg.norm(source)), float(np.abs(source).max())
    return float(np.linalg.norm(difference)) / (norm or 1.0), float(np.abs(difference).max()) / (largest or 1.0)
