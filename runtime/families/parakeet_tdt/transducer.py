"""Runs a Parakeet artifact's graphs: samples to encoder frames, frames to tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from runtime.artifact import Artifact
from runtime.engines import open_engine
from runtime.engines.base import Engine, Floats, Value
from runtime.families.parakeet_tdt.counting import CountingEngine
from runtime.families.parakeet_tdt.search import Chooser, DeviceSearch, Emission, HostSearch, Ints, SearchState
from runtime.families.parakeet_tdt.settings import (
    ENCODER,
    FRONTEND,
    JOIN,
    STEP,
    ParakeetDims,
    ParakeetFrontend,
    ParakeetSettings,
    encoder_bytes,
)
from runtime.timer import Timer

# One step is 1.5 ms of work on one core at full size: too little to share with others.
_HOST_THREADS = 1


@dataclass(frozen=True)
class Encoded:
    """Encoder frames [B, T, J] of a batch and how many each recording has, i64 [B], on the device and on the host."""

    frames: Value
    frames_len: Value
    lengths: Ints


class ParakeetTransducer:
    """Runs the graphs frontend, encoder, step, join and decode_N.

    Parameters
    ----------
    artifact : Artifact
        Of the family "parakeet_tdt".
    engine : Engine
        Its graphs, opened on the device.

    Attributes
    ----------
    load_s : float
        Seconds that opening a second engine on the CPU took, 0 where none was opened.
    timer : Timer
        Stages `frontend_s`, `encoder_s` and `decode_s`.

    """

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        self._artifact = artifact
        self.dims = artifact.part("dims", ParakeetDims)
        self.frontend = artifact.part("frontend", ParakeetFrontend)
        self.settings = artifact.part("settings", ParakeetSettings)
        self._device = CountingEngine(engine)
        self._host_engine = CountingEngine(engine) if engine.device == "cpu" else None
        self._dtype = next(spec.dtype for spec in artifact.content.graphs[JOIN].inputs if spec.name == "frame")
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
        item_bytes = 4 if self._dtype == "float32" else 2
        return encoder_bytes(self.dims, self.n_frames(round(seconds * self.frontend.sample_rate)), item_bytes)

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
        return Encoded(outputs["frames"], outputs["frames_len"], lengths)

    def frames(self, encoded: Encoded) -> Floats:
        """Copy the frames [B, T, J] to the host, once."""
        frames: Floats = self._device.get(encoded.frames)
        return frames

    def decode(
        self, encoded: Encoded, device_steps: int | None = None, choosers: Sequence[Chooser | None] = ()
    ) -> list[list[Emission]]:
        """Return the tokens of each recording of a batch.

        Parameters
        ----------
        encoded : Encoded
            From `encode`.
        device_steps : int or None
            Search on the device in calls of so many steps; None: on the host.
        choosers : sequence of Chooser or None
            Who chooses each recording's tokens; on the host only.

        """
        state = self.start(len(encoded.lengths), device_steps)
        return self.resume(encoded, state, device_steps, choosers)[0]

    def start(self, batch: int = 1, device_steps: int | None = None) -> SearchState:
        """Return the state of the search at the start of `batch` recordings; see `decode`."""
        search = self._host if device_steps is None else self._on_device(device_steps)
        with self.timer.measure("decode_s", on_device=False):
            return search.start(batch)

    def resume(
        self,
        encoded: Encoded,
        state: SearchState,
        device_steps: int | None = None,
        choosers: Sequence[Chooser | None] = (),
    ) -> tuple[list[list[Emission]], SearchState]:
        """Search a batch from `state` on; return what was found in each recording, and the state behind it."""
        if device_steps is None:
            return self.search(self.frames(encoded), encoded.lengths, state, choosers)
        with self.timer.measure("decode_s"):
            search = self._on_device(device_steps)
            return search.run(encoded.frames, encoded.frames_len, encoded.lengths, state)

    def search(
        self, frames: Floats, lengths: Ints, state: SearchState, choosers: Sequence[Chooser | None] = ()
    ) -> tuple[list[list[Emission]], SearchState]:
        """Search frames [B, T, J] on the host; see `HostSearch.run`."""
        host = self._host
        with self.timer.measure("decode_s", on_device=False):
            return host.run(frames, lengths, state, choosers)

    def truncate(self, encoded: Encoded, lengths: Ints) -> Encoded:
        """Return the same frames of which fewer count, i64 [B]."""
        return Encoded(encoded.frames, self._device.put(lengths, "int64"), lengths)

    def _on_device(self, n_steps: int) -> DeviceSearch:
        return DeviceSearch(self._device, self.dims, self._dtype, n_steps)

    @cached_property
    def _host(self) -> HostSearch:
        """The search on the CPU: with the device's engine where that is the CPU, otherwise with one of its own."""
        if self._host_engine is None:
            started = time.perf_counter()
            engine = open_engine(self._artifact, None, "cpu", _HOST_THREADS, (STEP, JOIN))
            self._host_engine = CountingEngine(engine)
            self.load_s = time.perf_counter() - started
        return HostSearch(self._host_engine, self.dims, self.settings, self._dtype)

    def take_counts(self) -> dict[str, int]:
        """Return what was asked of the device since the last call, and begin anew.

        By the names of `CountingEngine`; `host_calls` are those of the search on the host.
        """
        device, host = self._device, self._host_engine
        names = ("calls", "operators", "copies_in", "copies_out", "syncs")
        counts = {name: getattr(device, name) for name in names} | {"host_calls": host.calls if host else 0}
        for engine in (device, host):
            if engine:
                engine.reset()
        return counts
