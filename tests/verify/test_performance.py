"""Timing: what counts, when it stops, and what an engine that dies leaves behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from runtime.artifact import open_artifact
from verify import environment
from verify.golden import select
from verify.performance import measure, time_calls
from verify.timings import Protocol


def counting(seconds: float) -> tuple[Callable[[], None], list[int]]:
    calls: list[int] = []

    def call() -> None:
        calls.append(len(calls))
        time.sleep(seconds)

    return call, calls


def test_cold_warm_up_and_runs_are_apart() -> None:
    call, calls = counting(0.002)
    latency = time_calls(call, Protocol(warm_up=2, runs=5, budget_s=10, threads=None))
    assert len(calls) == 1 + 2 + 5
    assert len(latency.runs_s) == 5
    assert latency.latency_s.min >= 0.002
    assert latency.latency_s.max == max(latency.runs_s)


@pytest.mark.parametrize(("runs", "expected"), [(20, 3), (2, 2)])
def test_budget_leaves_three_runs(runs: int, expected: int) -> None:
    call, calls = counting(0.01)
    latency = time_calls(call, Protocol(warm_up=2, runs=runs, budget_s=0, threads=None))
    assert len(latency.runs_s) == expected
    assert len(calls) == 1 + expected


def test_every_graph_and_a_recording_are_timed(pocket_artifact: Path) -> None:
    artifact = open_artifact(pocket_artifact)
    protocol = Protocol(warm_up=1, runs=3, budget_s=10, threads=1)
    found = measure(artifact, "onnxruntime", "cpu", select(artifact, None), protocol)
    assert found.blocked is None
    assert set(found.graphs) == set(artifact.content.graphs)
    assert found.load_s is not None
    assert found.load_s > 0
    run = found.end_to_end
    assert run is not None
    golden = artifact.content.recordings[0]
    assert run.recording == golden.name
    assert run.tokens == sum(len(segment["tokens"]) for segment in golden.result["segments"])
    assert run.rtf == pytest.approx(run.latency.latency_s.p50 / run.duration_s)
    assert run.tokens_per_s == pytest.approx(run.tokens / run.latency.latency_s.p50)
    assert {"encoder_s", "prefill_s", "step_s", "total_s"} <= set(run.split_s)
    assert found.memory is not None
    assert 0 < found.memory.before_load < found.memory.after_load <= found.memory.peak


def test_only_what_was_chosen_is_timed(pocket_artifact: Path) -> None:
    artifact = open_artifact(pocket_artifact)
    protocol = Protocol(warm_up=0, runs=1, budget_s=10, threads=1)
    found = measure(artifact, "onnxruntime", "cpu", {"step_4"}, protocol)
    assert set(found.graphs) == {"step"}
    assert found.end_to_end is None


def test_an_engine_that_cannot_open_is_blocked_with_its_reason(pocket_artifact: Path) -> None:
    artifact = open_artifact(pocket_artifact)
    found = measure(artifact, "onnxruntime", "npu:0", {"step_4"}, Protocol(warm_up=0, runs=1, budget_s=1, threads=1))
    assert found.blocked is not None
    assert found.blocked.startswith("npu:0:")
    assert "Traceback" not in found.blocked


def test_a_process_that_is_killed_is_blocked(pocket_artifact: Path) -> None:
    """The engine's process dies without a word; the parent goes on."""
    artifact = open_artifact(pocket_artifact)
    protocol = Protocol(warm_up=0, runs=10**6, budget_s=60, threads=1)
    pid = os.fork()
    if pid == 0:  # kills the measuring process, a child of the parent, once it is there
        parent = psutil.Process(os.getppid())
        for _ in range(600):
            time.sleep(0.05)
            for child in parent.children():
                if "verify.performance" in child.cmdline():
                    child.send_signal(signal.SIGKILL)
                    os._exit(0)
        os._exit(1)
    found = measure(artifact, "onnxruntime", "cpu", {"step_4"}, protocol)
    assert os.waitpid(pid, 0)[1] == 0
    assert found.blocked == f"the process ended with {-signal.SIGKILL}"


def test_environment_as_psutil_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.memory_bytes() == psutil.virtual_memory().total
    assert environment.cpu_count() == psutil.cpu_count()
    assert environment.resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    assert environment.peak_resident_bytes() >= environment.resident_bytes()
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("SECRET_TOKEN", "not for a report")
    assert environment.variables()["ASCEND_RT_VISIBLE_DEVICES"] == "0,1"
    assert "SECRET_TOKEN" not in environment.variables()
    assert environment.versions()["numpy"] == __import__("numpy").__version__
