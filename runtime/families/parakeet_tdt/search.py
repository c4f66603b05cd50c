"""Greedy TDT search over encoder frames, for one recording and for a batch, on the host and on the device.

The rules are those of NeMo's `greedy_batch`, its default (label looping, https://arxiv.org/abs/2406.06220):

1. The token is the argmax of the V + 1 token logits, its duration that of the D duration logits.
2. A blank moves the search on by its duration, but at least by one frame.
3. Any other token is emitted at the frame, fed to the prediction net, and moves the search on by its duration, be it 0.
4. When `max_symbols` tokens were emitted at one frame and the last one's duration is 0, the search moves on by one.

NeMo's `greedy`, for one recording at a time, moves on by one more also where the last of `max_symbols` tokens has a
duration of its own; `greedy_batch` does not, and neither does this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.engines.base import Array, Floats, Value
from runtime.families.parakeet_tdt.settings import JOIN, STEP, ParakeetDims, ParakeetSettings, decode_graph
from runtime.fastconformer.encoder import Ints, check_finite
from runtime.manifest import Dtype


@dataclass(frozen=True)
class Emission:
    """A token that was found.

    Attributes
    ----------
    token : int
        Its id, below n_vocab.
    frame : int
        Encoder frame at which it was found.
    duration : int
        By how many frames the model moves on.
    logprob : float
        Natural logarithm of its probability among the V + 1 tokens.
    entropy : float
        Shannon entropy of that distribution in nats.

    """

    token: int
    frame: int
    duration: int
    logprob: float
    entropy: float


@dataclass(frozen=True)
class SearchState:
    """Where the search stands in each of B recordings; what the next frames of the same recordings begin with.

    `t` i64 [B] (on the host) is the frame to look at next: subtract the number of frames that are done. The others are
    where the search runs: `token` i64 [B], the last one found, or the blank at the start; `count` i64 [B], tokens found
    at frame t so far; `predicted` [B, J], `h` and `c` [L, B, H], what the prediction net made of `token`, or, where it
    is `unfed` (bool [B]; on the host only), of the tokens before.
    """

    t: Ints
    unfed: NDArray[np.bool_]
    token: Value
    count: Value
    predicted: Value
    h: Value
    c: Value


class Runner(Protocol):
    """Runs graphs: what the search needs of an engine."""

    def put(self, array: Array, dtype: Dtype) -> Value:
        """Return a copy of `array` on the device; see `Engine.put`."""

    def get(self, value: Value) -> Array:
        """Return `value` on the host; see `Engine.get`."""

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Call `graph`; see `Engine.run`."""


class Chooser(Protocol):
    """Chooses the tokens of one recording in place of the argmax."""

    def choose(self, logits: Floats) -> int:
        """Return a token for the token logits f32 [V + 1]; the blank is the last."""

    def accept(self, token: int) -> None:
        """Take note that `token`, not a blank, was emitted."""


class HostSearch:
    """The search as a loop on the host: graphs `step` after a token and `join` after a blank.

    The prediction net thus runs once for each token that frames come after (and once at the start), in a batch for all
    recordings that have found one; recordings that are done drop out of the batch. Its state is on the host between
    calls: it is small.

    Parameters
    ----------
    engine : Runner
        Runs the two graphs, on the host.
    dims, settings
        The network.
    dtype : Dtype
        Of the frames and the state.

    """

    def __init__(self, engine: Runner, dims: ParakeetDims, settings: ParakeetSettings, dtype: Dtype) -> None:
        self._engine = engine
        self._dims = dims
        self._durations = np.array(settings.durations, np.int64)
        self._max_symbols = settings.max_symbols
        self._dtype = dtype

    def start(self, batch: int) -> SearchState:
        """Return the state at the start of `batch` recordings."""
        dims, zeros = self._dims, np.zeros(batch, np.int64)
        predicted = np.zeros((batch, dims.joint_hidden), np.float32)
        memory = np.zeros((dims.pred_layers, batch, dims.pred_hidden), np.float32)
        token = np.full(batch, dims.blank, np.int64)
        return SearchState(zeros, np.ones(batch, np.bool_), token, zeros.copy(), predicted, memory, memory.copy())

    def run(
        self, frames: Floats, lengths: Ints, state: SearchState, choosers: Sequence[Chooser | None] = ()
    ) -> tuple[list[list[Emission]], SearchState]:
        """Search the frames of a batch to their ends.

        Parameters
        ----------
        frames : Floats
            [B, T, J], from the encoder.
        lengths : Ints
            i64 [B], frames of each recording.
        state : SearchState
            From `start`, or from the frames before these with `t` moved.
        choosers : sequence of Chooser or None
            One for each recording, or none at all: the argmax.

        Returns
        -------
        tuple of list of list of Emission and SearchState
            What was found in each recording, and the state behind it.

        Raises
        ------
        EnvironmentNotFitError
            The frames or the logits are not finite.

        """
        check_finite(frames, "frames of the encoder")
        now = SearchState(state.t.copy(), state.unfed.copy(), *(np.array(part) for part in _parts(state)))
        found: list[list[Emission]] = [[] for _ in lengths]
        # NeMo's GreedyBatchedTDTLabelLoopingComputer: blanks are skipped until every recording has found a token.
        while len(rows := np.flatnonzero(now.t < lengths)):
            fed = rows[~now.unfed[rows]]
            if len(fed):
                rows, logits = fed, self._join(frames, fed, now)
            else:
                logits = self._step(frames, rows, now)
            self._advance(logits, rows, now, found, choosers)
        return found, now

    def _advance(
        self,
        logits: Floats,
        rows: Ints,
        state: SearchState,
        found: list[list[Emission]],
        choosers: Sequence[Chooser | None],
    ) -> None:
        """Choose a token for each of `rows`, emit it unless it is the blank, and move on."""
        n_tokens = self._dims.n_vocab + 1
        tokens = logits[:, :n_tokens].argmax(axis=1)
        durations = self._durations[logits[:, n_tokens:].argmax(axis=1)]
        for i, row in enumerate(rows):
            chooser = choosers[row] if choosers else None
            if chooser:
                tokens[i] = chooser.choose(logits[i, :n_tokens])
            if tokens[i] == self._dims.blank:
                state.t[row] += max(durations[i], 1)
                state.count[row] = 0
                continue
            token, duration = int(tokens[i]), int(durations[i])
            found[row].append(_emission(token, int(state.t[row]), duration, *_summary(logits[i, :n_tokens], token)))
            if chooser:
                chooser.accept(token)
            state.token[row], state.unfed[row] = token, True
            state.count[row] += 1
            if duration or state.count[row] >= self._max_symbols:
                state.t[row] += duration or 1
                state.count[row] = 0

    def _join(self, frames: Floats, rows: Ints, state: SearchState) -> Floats:
        """Return the logits f32 [n, V + 1 + D] at the frames where `rows` stand."""
        put = self._engine.put
        inputs = {
            "frame": put(frames[rows, state.t[rows]], self._dtype),
            "predicted": put(state.predicted[rows], self._dtype),
        }
        return self._logits(self._engine.run(JOIN, inputs)["logits"])

    def _step(self, frames: Floats, rows: Ints, state: SearchState) -> Floats:
        """Feed the tokens of `rows` to the prediction net; return the logits f32 [n, V + 1 + D] where they stand."""
        put = self._engine.put
        inputs = {
            "token": put(state.token[rows], "int64"),
            "h": put(state.h[:, rows], self._dtype),
            "c": put(state.c[:, rows], self._dtype),
            "frame": put(frames[rows, state.t[rows]], self._dtype),
        }
        outputs = self._engine.run(STEP, inputs)
        parts = (self._engine.get(outputs[name]) for name in ("predicted", "new_h", "new_c"))
        state.predicted[rows], state.h[:, rows], state.c[:, rows] = parts
        state.unfed[rows] = False
        return self._logits(outputs["logits"])

    def _logits(self, value: Value) -> Floats:
        logits: Floats = self._engine.get(value)
        check_finite(logits, "logits")
        return logits


class DeviceSearch:
    """The search as a graph of N steps, `decode_N`, on the device: the host only asks whether it is done.

    Parameters
    ----------
    engine : Runner
        Runs the graphs.
    dims : ParakeetDims
        The network.
    dtype : Dtype
        Of the frames and the state.
    n_steps : int
        N: the artifact must have that graph.

    """

    def __init__(self, engine: Runner, dims: ParakeetDims, dtype: Dtype, n_steps: int) -> None:
        self._engine = engine
        self._dims = dims
        self._dtype = dtype
        self._n_steps = n_steps

    def start(self, batch: int) -> SearchState:
        """Return the state at the start of `batch` recordings."""
        dims, put = self._dims, self._engine.put
        memory = put(np.zeros((dims.pred_layers, batch, dims.pred_hidden), np.float32), self._dtype)
        frame = put(np.zeros((batch, dims.joint_hidden), np.float32), self._dtype)
        token = put(np.full(batch, dims.blank, np.int64), "int64")
        step = self._engine.run(STEP, {"token": token, "h": memory, "c": memory, "frame": frame})
        zeros = np.zeros(batch, np.int64)
        unfed, count = np.zeros(batch, np.bool_), put(zeros, "int64")
        return SearchState(zeros, unfed, token, count, step["predicted"], step["new_h"], step["new_c"])

    def run(
        self, frames: Value, frames_len: Value, lengths: Ints, state: SearchState
    ) -> tuple[list[list[Emission]], SearchState]:
        """Search the frames of a batch to their ends.

        Parameters
        ----------
        frames, frames_len : Value
            [B, T, J] and i64 [B], on the device.
        lengths : Ints
            The same as `frames_len`, on the host.
        state : SearchState
            From `start`, or from the frames before these with `t` moved.

        Returns
        -------
        tuple of list of list of Emission and SearchState
            What was found in each recording, and the state behind it.

        Raises
        ------
        EnvironmentNotFitError
            The logits are not finite.

        """
        found: list[list[Emission]] = [[] for _ in lengths]
        t, where = state.t, self._engine.put(state.t, "int64")
        memory = {name: getattr(state, name) for name in _PARTS}
        while (t < lengths).any():
            inputs = {"frames": frames, "frames_len": frames_len, "t": where, **memory}
            outputs = self._engine.run(decode_graph(self._n_steps), inputs)
            columns = [self._engine.get(outputs[name]) for name in _COLUMNS]
            t, where = np.array(self._engine.get(outputs["new_t"])), outputs["new_t"]
            memory = {name: outputs[f"new_{name}"] for name in _PARTS}
            for row, emissions in enumerate(found):
                emissions.extend(_emissions([column[row] for column in columns]))
        return found, SearchState(t, state.unfed, **memory)


_PARTS = ("token", "count", "predicted", "h", "c")
_COLUMNS = ("tokens", "at", "durations", "logit", "log_sum_exp", "mean_logit")


def _parts(state: SearchState) -> list[Value]:
    return [getattr(state, name) for name in _PARTS]


def _emissions(columns: Sequence[Array]) -> list[Emission]:
    """Return what N steps found in one recording; the token is -1 where a step found none."""
    kept = columns[0] >= 0
    columns = [column[kept] for column in columns]
    check_finite(np.stack(columns[3:]), "logits")
    return [_emission(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _emission(  # noqa: PLR0917 - a graph's columns
    token: int, frame: int, duration: int, logit: float, log_sum_exp: float, mean_logit: float
) -> Emission:
    """Return an emission by its logit, and log-sum-exp and mean by probability of all token logits.

    That is what decode_N returns: numbers of the logits' size, which have a relative error where the model is sure;
    log-probability and entropy are all but 0 there. Their signs are known, whatever is left by rounding.
    """
    return Emission(token, frame, duration, min(logit - log_sum_exp, 0.0), max(log_sum_exp - mean_logit, 0.0))


def _summary(logits: Floats, token: int) -> tuple[float, float, float]:
    """Return the logit of `token`, log-sum-exp and mean by probability of the token logits f32 [V + 1]."""
    highest = float(logits.max())
    shifted = logits - logits.max()
    exponentials = np.exp(shifted)
    total = float(exponentials.sum())
    return float(logits[token]), highest + math.log(total), highest + float(exponentials @ shifted) / total
