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
        Arrays copied to the device and from it.
    syncs : int
        Times that the host waited for the device: for each copy from it, and to tell the time.
    operators : int
        Operators that the calls were made of, as the graphs list them; 0 where the engine does not know.

    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.calls = self.copies_in = self.copies_out = self.syncs = 0
        self._operators_before = self.engine.probe.operators()

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
        self.syncs += 1
        return self.engine.get(value)

    def synchronize(self) -> None:
        """Wait for the device; see `Engine.synchronize`."""
        self.syncs += 1
        self.engine.synchronize()

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Call `graph`; see `Engine.run`."""
        self.calls += 1
        return self.engine.run(graph, inputs)
