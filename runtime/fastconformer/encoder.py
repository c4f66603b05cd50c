"""Runs the graphs of a FastConformer up to the encoder's outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.artifact import Artifact
from runtime.engines.base import Array, Engine, Floats, Value
from runtime.errors import EnvironmentNotFitError
from runtime.fastconformer.counting import CountingEngine
from runtime.fastconformer.settings import (
    ENCODER,
    FRONTEND,
    FastConformerDims,
    FastConformerFrontend,
    FastConformerSettings,
    encoder_bytes,
)
from runtime.timer import Timer

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """The encoder's outputs [B, T, n] of a batch and how many frames each recording has, i64 [B].

    They are on the device; `lengths` is the same as `frames_len` on the host.
    """

    frames: Value
    frames_len: Value
    lengths: Ints


class FastConformer:
    """Runs the graphs frontend and encoder; a family adds those of its decoder.

    Parameters
    ----------
    artifact : Artifact
        Of the family.
    engine : Engine
        Its graphs, opened on the device.

    Attributes
    ----------
    load_s : float
        Seconds that opening a second engine took, 0 where none was opened.
    timer : Timer
        Stages `frontend_s`, `encoder_s` and `decode_s`.

    """

    # The models of the manifest's parts, and the encoder's output that is decoded.
    dims_type: type[FastConformerDims]
    settings_type: type[FastConformerSettings]
    output: str

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        self.dims = artifact.part("dims", self.dims_type)
        self.frontend = artifact.part("frontend", FastConformerFrontend)
        self.settings = artifact.part("settings", self.settings_type)
        self._item_bytes = 4 if artifact.content.variant == "fp32" else 2
        self._device = CountingEngine(engine)
        self.load_s = 0.0
        self.timer = Timer(self._device)

    @property
    def frame_s(self) -> float:
        """Seconds from one encoder frame to the next."""
        return self.frame_samples / self.frontend.sample_rate

    @property
    def frame_samples(self) -> int:
        """Samples from one encoder frame to the next."""
        return self.frontend.hop_length * self.dims.subsampling_factor

    def encoder_bytes(self, seconds: float) -> int:
        """Return about how much memory the encoder takes for a recording, beside its weights."""
        return self.bytes_of_frames(self.n_frames(round(seconds * self.frontend.sample_rate)))

    def bytes_of_frames(self, n_frames: int) -> int:
        """Return the same for a recording of so many encoder frames."""
        return encoder_bytes(self.dims, n_frames, self._item_bytes)

    def batch_bytes(self, limit_s: float) -> int:
        """Return how much a batch may take: a recording of `limit_s` seconds, but half of what the device has left.

        Features, outputs and what else runs there need memory, too.
        """
        free = self._device.engine.probe.free_memory()
        most = self.bytes_of_frames(round(limit_s / self.frame_s))
        return most if free is None else min(most, free // 2)

    def n_frames(self, n_samples: int) -> int:
        """Return how many encoder frames so many samples have."""
        count = n_samples // self.frontend.hop_length
        for _ in range(int(math.log2(self.dims.subsampling_factor))):
            count = (count - 1) // 2 + 1
        return count

    def encode(self, recordings: Sequence[Floats]) -> Encoded:
        """Encode samples f32 [n] of each recording as one padded batch; one of them has frames at least."""
        n_samples = np.array([len(samples) for samples in recordings], np.int64)
        audio = np.zeros((len(recordings), n_samples.max()), np.float32)
        for row, samples in zip(audio, recordings, strict=True):
            row[: len(samples)] = samples
        device = self._device
        with self.timer.measure("frontend_s"):
            features = device.run(
                FRONTEND, {"audio": device.put(audio, "float32"), "length": device.put(n_samples, "int64")}
            )
        with self.timer.measure("encoder_s"):
            outputs = device.run(ENCODER, features)
        lengths = np.array([self.n_frames(count) for count in n_samples], np.int64)
        return Encoded(outputs[self.output], outputs["frames_len"], lengths)

    def frames(self, encoded: Encoded) -> Floats:
        """Copy the encoder's outputs [B, T, n] to the host, once."""
        frames: Floats = self._device.get(encoded.frames)
        return frames

    def truncate(self, encoded: Encoded, lengths: Ints) -> Encoded:
        """Return the same frames of which fewer count, i64 [B]."""
        return Encoded(encoded.frames, self._device.put(lengths, "int64"), lengths)

    def take_counts(self) -> dict[str, int]:
        """Return what was asked of the device since the last call, by the names of `CountingEngine`; begin anew.

        `host_calls` are those of graphs on the host.
        """
        device = self._device
        names = ("calls", "operators", "copies_in", "copies_out", "syncs")
        counts = {name: getattr(device, name) for name in names} | {"host_calls": 0}
        device.reset()
        return counts


def check_finite(array: Array, what: str) -> None:
    """Refuse numbers that are not finite.

    Raises
    ------
    EnvironmentNotFitError
        There are some.

    """
    if not np.isfinite(array).all():
        raise EnvironmentNotFitError(
            f"expected finite {what}, found NaN or Inf; `atlasport verify` tells which graph, fp32 may be right"
        )
