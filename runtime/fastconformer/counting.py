"""Counts what a recognition asks of an engine."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.engines.base import Array, Engine, Value
from runtime.manifest import Dtype


class CountingEngine:
    """An engine's graphs with a count of what is asked of the device.

    Attributes
    ----------
    calls : int
        Calls of graphs.
    copies_in, copies_out : int
        Arrays given to the device and copied from it.
    syncs : int
        Times that the host waited for the device: for each copy from it, for those to it that wait, and to tell the
        time.
    operators : int
        Operators that the work was made of, as the graphs list them; 0 where the engine does not know.

    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.calls = self.copies_in = self.copies_out = self._waits = 0
        self._operators_before = self.engine.probe.operators()
        self._put_waits_before = self.engine.probe.put_waits()

    @property
    def syncs(self) -> int:
        """Waits since the count began."""
        return self._waits + self.engine.probe.put_waits() - self._put_waits_before

    @property
    def operators(self) -> int:
        """Operators since the count began."""
        return self.engine.probe.operators() - self._operators_before

    def put(self, array: Array, dtype: Dtype) -> Value:
        """Return a copy of `array` on the device; see `Engine.put`."""
        self.copies_in += 1
        return self.engine.put(array, dtype)

    def get(self, value: Value) -> Array:
        """Return `value` on the host; see `Engine.get`."""
        self.copies_out += 1
        self._waits += 1
        return self.engine.get(value)

    def synchronize(self) -> None:
        """Wait for the device; see `Engine.synchronize`."""
        self._waits += 1
        self.engine.synchronize()

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Call `graph`; see `Engine.run`."""
        self.calls += 1
        return self.engine.run(graph, inputs)
