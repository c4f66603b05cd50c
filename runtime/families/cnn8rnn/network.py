"""From log-mel frames to logits: gates once, the GRU's recurrence call after call, then the head."""

from __future__ import annotations

from runtime.engines.base import Engine, Floats, Value
from runtime.families.cnn8rnn.settings import GATES, HEAD, RECURRENCE
from runtime.manifest import Content


class Network:
    """The graphs behind the front-end, on one engine; gates and states stay on the device.

    A call of the recurrence takes a fixed number of steps, from the states behind the one before. Both directions count
    from their own first step, so what is left of the last call's gates is padding behind the recording in both: its
    states are not kept.
    """

    def __init__(self, content: Content, engine: Engine, frames_per_score: int) -> None:
        graph = content.graphs[RECURRENCE]
        specs = {spec.name: spec for spec in (*graph.inputs, *graph.outputs)}
        self._engine = engine
        self._per_score = frames_per_score
        self._states = specs["states"]
        self._gates = engine.zeros(specs["gates"])  # [1, 2, steps, 3 n_hidden], the next call's
        self._first = engine.zeros(specs["h"])
        self._steps = int(specs["gates"].shape[2])
        self._recur = engine.bind(RECURRENCE, {"gates": self._gates})

    def logits(self, logmel: Floats) -> Floats:
        """Return the logits f32 [n_frames // frames_per_score, n_classes] of log-mel frames f32 [n_mels, n_frames]."""
        engine = self._engine
        gates = engine.run(GATES, {"logmel": engine.put(logmel[None], "float32")})["gates"]
        states = self.states(gates, logmel.shape[1] // self._per_score)
        logits: Floats = engine.get(engine.run(HEAD, {"states": states})["logits"])[0]
        return logits

    def states(self, gates: Value, n_scores: int) -> Value:
        """Return the states [1, 2, n_scores, n_hidden] behind each step, for gates [1, 2, n_scores, 3 n_hidden]."""
        engine = self._engine
        _, directions, _, width = self._states.shape
        states = engine.zeros(self._states.model_copy(update={"shape": (1, directions, n_scores, width)}))
        h = self._first
        for start in range(0, n_scores, self._steps):
            count = min(self._steps, n_scores - start)
            engine.write_rows(self._gates, gates, 0, count, start)
            outputs = self._recur({"h": h})
            engine.write_rows(states, outputs["states"], start, count)
            h = outputs["new_h"]
        return states
