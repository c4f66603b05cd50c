"""What an engine records of its graphs, against what was called."""

from __future__ import annotations

import json
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from toy_artifact import DIM, ROWS, write_toy

from runtime.artifact import Artifact, open_artifact
from runtime.engines import ENGINES, open_engine
from runtime.engines.base import Engine, EngineSettings
from runtime.engines.worker import WorkerEngine
from runtime.manifest import TensorSpec

PROFILED = EngineSettings(profile=True)
CALLS = {"encoder": 2, "step": 3}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return open_artifact(write_toy(tmp_path_factory.mktemp("toy") / "float32"))


def work(engine: Engine) -> None:
    """Call the graphs as often as CALLS says, by both ways there are."""
    for _ in range(CALLS["encoder"]):
        engine.run("encoder", {"x": engine.put(np.ones((1, 3, DIM), np.float32), "float32")})
    cache = engine.zeros(TensorSpec(name="self_k", dtype="float32", shape=(1, 2, ROWS, DIM)))
    step = engine.bind("step", {"cross": engine.put(np.ones((1, 2, 3, DIM)), "float32"), "self_k": cache})
    for pos in range(CALLS["step"]):
        step({"tokens": engine.put(np.array([[1]]), "int64"), "pos": engine.put(np.array([pos]), "int64")})


def check(engine: Engine, within_s: float) -> None:
    profile = engine.take_profile()
    calls = {time.graph: time.calls for time in profile.times if not time.operator}
    assert calls == CALLS
    of_operators = [time for time in profile.times if time.operator]
    # The graphs have neither branches nor loops.
    assert [t for t in of_operators if t.calls % CALLS[t.graph]] == []
    assert {time.graph for time in of_operators} == set(CALLS)
    assert 0 < sum(time.host_s for time in profile.times) <= within_s
    events = json.loads(profile.trace)["traceEvents"]
    shown = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    assert shown == CALLS
    assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")


@pytest.mark.parametrize("name", ENGINES)
def test_calls_and_operators(toy: Artifact, name: str, capfd: pytest.CaptureFixture[str]):
    start = time.perf_counter()
    engine = open_engine(toy, name, threads=1, settings=PROFILED)
    work(engine)
    check(engine, time.perf_counter() - start)
    engine.close()
    assert capfd.readouterr() == ("", "")


def test_in_a_process_of_its_own(toy: Artifact):
    start = time.perf_counter()
    engine = WorkerEngine(toy, "torchscript", "cpu", 1, PROFILED)
    work(engine)
    check(engine, time.perf_counter() - start)
    engine.close()


def test_graphs_of_onnxruntime_follow_each_other_in_time(toy: Artifact):
    engine = open_engine(toy, "onnxruntime", threads=1, settings=PROFILED)
    work(engine)
    events = json.loads(engine.take_profile().trace)["traceEvents"]
    calls = sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for e in events if e["cat"] == "user_annotation")
    assert [name for *_, name in calls] == [name for name, count in CALLS.items() for _ in range(count)]
    assert all(before[1] <= after[0] for before, after in pairwise(calls))


def test_nothing_of_onnxruntime_lies_where_the_program_runs(
    toy: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    open_engine(toy, "onnxruntime", settings=PROFILED, graphs=["step"]).close()
    assert not list(tmp_path.iterdir())
