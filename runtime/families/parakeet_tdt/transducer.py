"""Runs a Parakeet artifact's graphs: samples to encoder frames, frames to tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property

from runtime.artifact import Artifact
from runtime.engines import open_engine
from runtime.engines.base import Engine, Floats
from runtime.families.parakeet_tdt.search import Chooser, DeviceSearch, Emission, HostSearch, SearchState
from runtime.families.parakeet_tdt.settings import JOIN, STEP, ParakeetDims, ParakeetSettings
from runtime.fastconformer.counting import CountingEngine
from runtime.fastconformer.encoder import Encoded, FastConformer, Ints

# One step is 1.5 ms of work on one core at full size: too little to share with others.
_HOST_THREADS = 1


class ParakeetTransducer(FastConformer):
    """Runs the graphs frontend, encoder, step, join and decode_N; see `FastConformer`.

    The encoder's outputs are frames [B, T, J], which went through the joint net's projection.
    """

    dims: ParakeetDims
    settings: ParakeetSettings
    dims_type, settings_type, output = ParakeetDims, ParakeetSettings, "frames"

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        super().__init__(artifact, engine)
        self._artifact = artifact
        self._host_engine = CountingEngine(engine) if engine.device == "cpu" else None
        self._dtype = next(spec.dtype for spec in artifact.content.graphs[JOIN].inputs if spec.name == "frame")

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
        """Return what was asked of the device, and `host_calls` of the search on the host; see `FastConformer`."""
        host = self._host_engine
        counts = super().take_counts() | {"host_calls": host.calls if host else 0}
        if host:
            host.reset()
        return counts
