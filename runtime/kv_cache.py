"""The kv cache of a decoder that makes one token a step, and the step: what models with attention share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from runtime.engines.base import BoundGraph, Engine, Floats, Value
from runtime.manifest import TensorSpec


class KvCache:
    """Keys and values of the tokens so far, where the engine keeps them; rows that are not written are not read.

    Parameters
    ----------
    engine : Engine
        Runs the graphs.
    specs : iterable of TensorSpec
        The caches, inputs of the step's graph. Its outputs of the same names with `new_` before them are their new
        rows.

    Attributes
    ----------
    values : mapping of str to Value
        The caches by name, for the step's graph to be bound to.

    """

    def __init__(self, engine: Engine, specs: Iterable[TensorSpec]) -> None:
        self._engine = engine
        self.values: dict[str, Value] = {spec.name: engine.zeros(spec) for spec in specs}

    def write(self, outputs: Mapping[str, Value], first: int, count: int) -> None:
        """Write `count` new rows from row `first` on."""
        for name, cache in self.values.items():
            self._engine.write_rows(cache, outputs[f"new_{name}"], first, count)

    def step(self, graph: BoundGraph, token: int, position: int) -> Floats:
        """Feed `token` at `position`; return the next token's logits [V] f32, which the caller may write to."""
        put = self._engine.put
        inputs = {
            "tokens": put(np.array([[token]], np.int64), "int64"),
            "pos": put(np.array([position], np.int64), "int64"),
        }
        outputs = graph(inputs)
        self.write(outputs, position, 1)
        return np.array(self._engine.get(outputs["logits"]), np.float32).reshape(-1)
