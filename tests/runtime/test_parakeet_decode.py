"""The greedy TDT search: NeMo's references, the rules by the book on random nets, batches, carried states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parakeet_nets import (
    ITEMS,
    REFERENCE,
    Nets,
    counting,
    log_softmax,
    padded,
    plain_search,
    pocket_frames,
    pocket_nets,
    random_nets,
    reference_triples,
    triples,
)

from runtime.errors import EnvironmentNotFitError
from runtime.families.parakeet_tdt.search import Chooser, DeviceSearch, Emission, HostSearch, SearchState
from runtime.fastconformer.counting import CountingEngine

Run: TypeAlias = Callable[[Nets, list[np.ndarray]], tuple[list[list[Emission]], SearchState, CountingEngine]]
ORDERS = [["t1"], ["t4"], ["t1", "t2", "t3", "t4"], ["t4", "t1", "t3"]]


def on_host(nets: Nets, recordings: list[np.ndarray], choosers: list[Chooser | None] | None = None):
    engine = counting(nets)
    search = HostSearch(engine, nets.dims, nets.settings, "float32")
    # What lies behind a recording's end in a batch must not matter.
    frames, lengths = padded(recordings, fill=50.0)
    found, state = search.run(frames, lengths, search.start(len(recordings)), choosers or ())
    return found, state, engine


def on_device(nets: Nets, recordings: list[np.ndarray], n_steps: int):
    engine = counting(nets)
    search = DeviceSearch(engine, nets.dims, "float32", n_steps)
    frames, lengths = padded(recordings, fill=50.0)
    found, state = search.run(frames, lengths, lengths, search.start(len(recordings)))
    return found, state, engine


def in_eights(nets: Nets, recordings: list[np.ndarray]):
    return on_device(nets, recordings, 8)


# --- NeMo's references ---


@pytest.mark.parametrize("names", ORDERS, ids=" ".join)
def test_nemo_alone_and_in_a_batch(names: list[str]) -> None:
    found, _, _ = on_host(pocket_nets(), [pocket_frames(name) for name in names])
    assert [triples(emissions) for emissions in found] == [reference_triples(name) for name in names]


@pytest.mark.parametrize("n_steps", [1, 3, 8, 32])
@pytest.mark.parametrize("names", ORDERS, ids=" ".join)
def test_nemo_on_the_device(names: list[str], n_steps: int) -> None:
    found, _, _ = on_device(pocket_nets(), [pocket_frames(name) for name in names], n_steps)
    assert [triples(emissions) for emissions in found] == [reference_triples(name) for name in names]


@pytest.mark.parametrize("name", list(ITEMS))
@pytest.mark.parametrize("run", [on_host, in_eights])
def test_probabilities_are_those_of_nemos_joint(name: str, run: Run) -> None:
    """NeMo's rows are log-softmax over tokens and durations together; ours are over the tokens alone."""
    stored = np.load(REFERENCE / f"{name}.npz")
    rows = stored["joint"][stored["step_label"] != 192, :193].astype(np.float64)
    (found,), _, _ = run(pocket_nets(), [pocket_frames(name)])
    for emission, row in zip(found, rows, strict=True):
        logprobs = log_softmax(row)
        assert emission.logprob == pytest.approx(logprobs[emission.token], abs=1e-4)
        assert emission.entropy == pytest.approx(-(np.exp(logprobs) * logprobs).sum(), abs=1e-4)


def nemo_calls(name: str) -> Counter[str]:
    """What NeMo's steps ask for: the prediction net at the start and after each token, the joint net after a blank."""
    labels = np.load(REFERENCE / f"{name}.npz")["step_label"]
    # Behind the last one no frame is left.
    return Counter(["step", *("join" if label == 192 else "step" for label in labels[:-1])])


@pytest.mark.parametrize("name", list(ITEMS))
def test_the_prediction_net_runs_per_token(name: str) -> None:
    _, _, engine = on_host(pocket_nets(), [pocket_frames(name)])
    assert Counter(graph for graph, _ in engine.engine.called) == nemo_calls(name)
    assert engine.calls == ITEMS[name]["joint_calls"]


def test_a_batch_runs_the_prediction_net_once_for_all() -> None:
    names = list(ITEMS)
    _, _, engine = on_host(pocket_nets(), [pocket_frames(name) for name in names])
    batches = [batch for graph, batch in engine.engine.called if graph == "step"]
    steps = [nemo_calls(name)["step"] for name in names]
    assert len(batches) == max(steps)
    # Those that are done drop out.
    assert sorted(batches, reverse=True) == batches
    assert sum(batches) == sum(steps)


def test_copies_of_the_device_search() -> None:
    """Five copies in at the start, seven out for each call of the graph."""
    _, _, engine = on_device(pocket_nets(), [pocket_frames("t4")], 8)
    steps = ITEMS["t4"]["joint_calls"]
    calls = -(-steps // 8)
    assert engine.calls == calls + 1
    assert (engine.copies_in, engine.copies_out) == (5, 7 * calls)


# --- any nets ---

NETS = st.builds(
    random_nets,
    st.integers(0, 2**32).map(np.random.default_rng),
    st.sampled_from([(0, 1, 2, 3, 4), (0, 1), (1, 2, 4, 8), (0, 2, 5)]),
    st.integers(1, 4),
    st.floats(-3, 6),
    st.floats(-6, 3),
)
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=4)


def recordings_of(lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(len(lengths) * 1000 + sum(lengths))
    return [rng.standard_normal((length, 6)).astype(np.float32) * 2 for length in lengths]


@settings(max_examples=150)
@given(nets=NETS, lengths=LENGTHS, n_steps=st.integers(1, 9))
def test_any_nets(nets: Nets, lengths: list[int], n_steps: int) -> None:
    """The search ends, follows the rules by the book, and is the same alone, in a batch and on the device."""
    recordings = recordings_of(lengths)
    found, state, _ = on_host(nets, recordings)
    assert [triples(emissions) for emissions in found] == [plain_search(nets, frames) for frames in recordings]
    for emissions, length in zip(found, lengths, strict=True):
        frames = [emission.frame for emission in emissions]
        assert frames == sorted(frames)
        assert all(0 <= frame < length for frame in frames)
        assert max(Counter(frames).values(), default=0) <= nets.settings.max_symbols
        for emission in emissions:
            assert -50 < emission.logprob <= 0
            assert -1e-6 <= emission.entropy <= np.log(8) + 1e-6
    there, there_state, _ = on_device(nets, recordings, n_steps)
    assert [triples(emissions) for emissions in there] == [triples(emissions) for emissions in found]
    np.testing.assert_array_equal(there_state.t, state.t)
    np.testing.assert_array_equal(there_state.token, state.token)
    fed = ~state.unfed
    np.testing.assert_allclose(there_state.h[:, fed], state.h[:, fed], atol=1e-5)


def test_max_symbols_matter() -> None:
    """Nets that never move on by themselves: `max_symbols` tokens at each frame, then the next."""
    nets = random_nets(np.random.default_rng(1), (0, 1, 2), max_symbols=3, eagerness=100, haste=-100)
    (found,), _, _ = on_host(nets, recordings_of([5]))
    assert Counter(emission.frame for emission in found) == dict.fromkeys(range(5), 3)
    assert {emission.duration for emission in found} == {0}


def test_a_blank_without_duration_moves_on() -> None:
    nets = random_nets(np.random.default_rng(1), (0, 1, 2), max_symbols=3, eagerness=-100, haste=-100)
    (found,), state, engine = on_host(nets, recordings_of([5]))
    assert found == []
    assert state.t == [5]
    assert [graph for graph, _ in engine.engine.called] == ["step", *["join"] * 4]


@settings(max_examples=60)
@given(nets=NETS, length=st.integers(2, 14), data=st.data())
def test_frames_in_two_parts(nets: Nets, length: int, data: st.DataObject) -> None:
    """The state carries over: cut anywhere, what is found is the same."""
    cut = data.draw(st.integers(1, length - 1))
    (frames,) = recordings_of([length])
    (whole,), _, _ = on_host(nets, [frames])
    device = DeviceSearch(counting(nets), nets.dims, "float32", 4)
    host = HostSearch(counting(nets), nets.dims, nets.settings, "float32")
    for search, state in (
        (host.run, host.start(1)),
        (lambda part, n, now: device.run(part, n, n, now), device.start(1)),
    ):
        found: list[Emission] = []
        now = state
        for start, part in ((0, frames[:cut]), (cut, frames[cut:])):
            (emissions,), now = search(part[None], np.array([len(part)]), now)
            found += [replace(emission, frame=emission.frame + start) for emission in emissions]
            now = replace(now, t=now.t - len(part))
        assert triples(found) == triples(whole)


# --- choosers ---


class Forbid:
    """Takes the best token but one."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.accepted: list[int] = []

    def choose(self, logits: np.ndarray) -> int:
        assert logits.shape == (193,)
        return int(np.where(np.arange(193) == self.token, -np.inf, logits).argmax())

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def test_a_chooser_of_one_recording() -> None:
    usual = ITEMS["t1"]["token_ids"]
    chooser = Forbid(usual[2])
    found, _, _ = on_host(pocket_nets(), [pocket_frames("t1"), pocket_frames("t2")], [chooser, None])
    tokens = [emission.token for emission in found[0]]
    assert tokens[:2] == usual[:2]
    assert usual[2] not in tokens
    assert chooser.accepted == tokens
    assert triples(found[1]) == reference_triples("t2")
    # The log-probability stays the net's own.
    assert found[0][2].logprob < found[0][1].logprob


# --- broken numbers ---


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_frames_that_are_not_finite(value: float) -> None:
    frames = pocket_frames("t1").copy()
    frames[3, 5] = value
    with pytest.raises(EnvironmentNotFitError, match="expected finite frames of the encoder, found NaN or Inf"):
        on_host(pocket_nets(), [frames])


@pytest.mark.parametrize("run", [on_host, in_eights])
def test_logits_that_are_not_finite(run: Run) -> None:
    nets = pocket_nets()
    broken = replace(nets, weights={**nets.weights, "out_b": nets.weights["out_b"] * np.nan})
    with pytest.raises(EnvironmentNotFitError, match="found NaN or Inf"):
        run(broken, [pocket_frames("t1")])
