"""Teacher forcing: the search along given logits, and what an engine computes on that way."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from runtime.engines.base import Array, Floats, Value
from runtime.families.parakeet_tdt.search import Runner
from runtime.families.parakeet_tdt.settings import JOIN, STEP
from runtime.manifest import Dtype


class TeacherForcingEngine:
    """An engine for `HostSearch` whose graphs step and join return given logits in place of its own, which it keeps.

    A search of one recording then goes the way of the given logits, whatever the engine computes: its own logits stand
    for the same frames and the same tokens, and can be compared row by row. Export and verify use it.

    Parameters
    ----------
    engine : Runner
        Runs the graphs.
    logits : Floats or None
        f32 [n, V + 1 + D], those of an earlier search of the same frames; None lets the engine go its own way.

    """

    def __init__(self, engine: Runner, logits: Floats | None = None) -> None:
        self._engine = engine
        self._given = logits
        self._rows: list[Floats] = []

    @property
    def rows(self) -> Floats:
        """The engine's own logits f32 [n, V + 1 + D]."""
        return np.concatenate(self._rows)

    def put(self, array: Array, dtype: Dtype) -> Value:
        """Return a copy of `array` on the device; see `Engine.put`."""
        return self._engine.put(array, dtype)

    def get(self, value: Value) -> Array:
        """Return `value` on the host; see `Engine.get`."""
        return self._engine.get(value)

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Call `graph`; see `Engine.run`."""
        outputs = self._engine.run(graph, inputs)
        if graph in (STEP, JOIN):
            own = np.array(self._engine.get(outputs["logits"]), np.float32)
            if self._given is not None:
                outputs["logits"] = self._engine.put(self._given[len(self._rows)][None], "float32")
            self._rows.append(own)
        return outputs
