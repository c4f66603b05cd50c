"""Golden inputs and outputs: what the fp32 graphs compute in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.safetensors_writer import TensorInfo, write_safetensors
from runtime.audio import open_audio
from runtime.engines.base import Array, Floats
from runtime.manifest import Case, GoldenInput, GoldenOutput, Recording, TeacherForced
from runtime.results import Transcript

AUDIO_FOLDER = "audio"


@dataclass(frozen=True)
class Clip:
    """A recording that becomes part of the artifact, and what a person says is in it (`Recording.reference`).

    `is_own`: a user brought it, and says thereby that the model knows its language.
    """

    path: Path
    reference: dict[str, Any] | None
    is_own: bool = True

    @property
    def file(self) -> str:
        """Its path in the artifact."""
        return f"{AUDIO_FOLDER}/{self.path.name}"


@dataclass
class Golden:
    """Cases and recordings; `arrays` holds the cases' inputs and outputs by key."""

    arrays: dict[str, Array] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)
    teacher_forced: list[TeacherForced] = field(default_factory=list)
    recordings: list[Recording] = field(default_factory=list)

    def add_case(
        self,
        name: str,
        graph: str,
        note: str,
        inputs: Mapping[str, Array | str],
        outputs: Mapping[str, Array],
        *,
        strides: Mapping[str, int] | None = None,
        fills: Mapping[str, float] | None = None,
        real: bool = False,
    ) -> None:
        """Add a case.

        Parameters
        ----------
        name, graph, note : str
            The case, the graph that it calls, and what it is there for.
        inputs : Mapping[str, Array | str]
            The graph's inputs: an array, or the key of one that an earlier case stored.
        outputs : Mapping[str, Array]
            What the graph returned.
        strides : Mapping[str, int], optional
            Outputs of which only every n-th index along axis -2 is kept.
        fills : Mapping[str, float], optional
            Inputs whose array is shorter than the graph's input along axis 2, and the value of the rest.
        real : bool
            Whether the inputs follow from a recording, as in use.

        """
        strides, fills = strides or {}, fills or {}
        stored_inputs = {}
        for tensor, value in inputs.items():
            key = value if isinstance(value, str) else self._store(f"{name}/{tensor}", value)
            stored_inputs[tensor] = GoldenInput(key=key, fill=fills.get(tensor))
        stored_outputs = {}
        for tensor, array in outputs.items():
            stride = strides.get(tensor, 1)
            kept = array if stride == 1 else array[..., ::stride, :]
            stored_outputs[tensor] = GoldenOutput(key=self._store(f"{name}/{tensor}", kept), stride=stride)
        self.cases.append(
            Case(name=name, graph=graph, note=note, real=real, inputs=stored_inputs, outputs=stored_outputs)
        )

    def add_teacher_forced(self, run: TeacherForced, logits: Array) -> None:
        """Add a run along given tokens with its logits [n, V] f32, stored under `run.logits`."""
        self._store(run.logits, logits)
        self.teacher_forced.append(run)

    def add_recording(
        self,
        clip: Clip,
        options: Mapping[str, Any],
        result: Mapping[str, Any],
        *,
        name: str | None = None,
        margins: Mapping[str, Sequence[float]] | None = None,
        bounds: tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]] | None = None,
    ) -> None:
        """Add a recording with what the golden run heard in it: the parts of the result's JSON that are compared.

        A recording that is heard a second time, with other options, has a name of its own. `bounds` are of sounds:
        `Recording.certain` and `possible`.
        """
        certain, possible = map(tuple, bounds) if bounds else (None, None)
        by_head = None if margins is None else {head: tuple(values) for head, values in margins.items()}
        recording = Recording(
            name=name or clip.path.stem,
            file=clip.file,
            options=dict(options),
            reference=clip.reference,
            result=dict(result),
            margins=by_head,
            certain=certain,
            possible=possible,
        )
        self.recordings.append(recording)

    def _store(self, key: str, array: Array) -> str:
        if key in self.arrays:
            raise ValueError(f"golden array {key} is there already")
        self.arrays[key] = np.ascontiguousarray(array)
        return key

    def inputs(self, case: Case) -> dict[str, Array]:
        """Return the stored inputs of a case by name."""
        return {name: self.arrays[stored.key] for name, stored in case.inputs.items()}

    def write(self, path: Path) -> None:
        """Write the arrays as safetensors."""
        tensors = {key: torch.from_numpy(array) for key, array in self.arrays.items()}
        infos = {key: TensorInfo(tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
        write_safetensors(path, infos, tensors.__getitem__)


def read_samples(path: Path, rate: int) -> Floats:
    """Return the samples f32 [n] of a whole recording at `rate` Hz."""
    return np.concatenate(list(open_audio(path).blocks(rate)))


def segments_of(transcript: Transcript, *compared: str) -> list[dict[str, Any]]:
    """Return a transcript's segments as golden ones: times, text, tokens, and what else of the JSON is compared."""
    parts = ("start", "end", "text", "tokens", *compared)
    return [{part: segment[part] for part in parts} for segment in transcript.to_json()["segments"]]
