"""Whisper on the simulated device beyond check_families.py; run by tests/npu/test_simulated_families.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from npu_simulator import ROOT
from on_device import (
    ARTIFACT,
    CHECKED,
    ENGINES,
    OTHER,
    RECORDING,
    Opened,
    alike,
    host_copies,
    opened,
    replays,
    said,
    shared,
)
from torch_npu import simulator

from runtime.engines import load_engine
from runtime.engines.base import EngineSettings
from runtime.engines.probe import Work
from runtime.golden import Golden, run_case
from runtime.results import Transcript

pytest_plugins = ("on_device",)
FLAGS = (
    "set_compile_mode.jit_compile",
    "config.allow_internal_format",
    "conv.allow_hf32",
)
ENCODER = next(case for case in ARTIFACT.content.cases if case.graph == "encoder")


def copies_of(run: Opened, path: Path) -> tuple[Transcript, dict[str, Any], int]:
    """Transcribe; return the copies by direction and the number of tokens that were chosen."""
    for graph in ARTIFACT.content.graphs:  # otherwise weights are among them
        run.engine.open(graph)
    simulator.clear_record()
    transcript = run.recognize(path)
    tokens = sum(len(segment.tokens) for segment in transcript.segments)
    ended = tokens < CHECKED.options["max_new_tokens"]  # then the end token was chosen too
    return transcript, simulator.report(), tokens + ended


def expected_whisper_copies(chosen: int) -> dict[str, int]:
    """To the device: samples, mel, prompt and rows; nothing per step. Back: mel, and logits per token."""
    return {"host_to_device": 4, "device_to_host": 1 + chosen}


def test_one_small_copy_and_one_wait_per_token(on_npu: Opened):
    for path in (RECORDING, OTHER):
        _, report, chosen = copies_of(on_npu, path)
        assert chosen > 3
        assert host_copies(report) == expected_whisper_copies(chosen)
        vocabulary = ARTIFACT.content.dims["n_vocab"]
        back = report["copies"]["device_to_host"]["shapes"]
        assert back[f"Float[1, 1, {vocabulary}]"] == chosen - 1
        # One wait per token, for its logits; beside them those of the window, and the timer's at the ends of stages,
        # which a worker leaves out behind a copy to the host (tests/npu/test_simulated_families.py).
        waits = report["synchronizations"]
        assert waits.pop("device")
        assert waits == {"host_to_device": 4, "device_to_host": 1 + chosen}
        assert not report["fallbacks"]


def test_the_engine_counts_what_the_device_does(on_npu: Opened):
    """By graph; what results say of a token and of a window is made of it."""
    before = on_npu.engine.probe.work()
    _, report, chosen = copies_of(on_npu, RECORDING)
    work = {graph: after.since(before.get(graph, Work())) for graph, after in on_npu.engine.probe.work().items()}
    layers = ARTIFACT.content.dims["n_text_layer"]
    operators = report["operators_run"]
    assert sum(asked.operators for asked in work.values()) == operators
    # The device also copies where a graph looks at many rows in another order.
    on_device = report["copies"]["device_to_device"]["count"]
    assert operators < sum(asked.launches for asked in work.values()) <= operators + on_device
    assert sum(asked.copies for asked in work.values()) == sum(host_copies(report).values())
    assert sum(asked.syncs for asked in work.values()) == sum(report["synchronizations"].values())
    step = work["step"]
    assert (step.calls, step.copies) == (chosen - 1, chosen - 1)
    # Of the rows, and of token and position.
    assert step.launches - step.operators == 2 * layers * step.calls


def test_a_replay_is_one_launch():
    """Beside it token and position, their copies into the recording's memory, and the rows; a window's keys once."""
    run = opened("torchscript", capture=True)
    run.recognize(RECORDING)
    before = run.engine.probe.work()["step"]
    run.recognize(RECORDING)
    step = run.engine.probe.work()["step"].since(before)
    rows = keys = 2 * ARTIFACT.content.dims["n_text_layer"]
    assert step.launches == (1 + 2 + 2 + rows) * step.calls + keys
    assert step.operators > 20 * step.calls


def test_a_copy_too_many_shows(on_npu: Opened, monkeypatch: pytest.MonkeyPatch):
    engine = on_npu.engine
    write_rows = engine.write_rows

    def chatty(cache: Any, rows: Any, at: int, count: int) -> None:
        engine.get(rows)
        write_rows(cache, rows, at, count)

    monkeypatch.setattr(engine, "write_rows", chatty)
    _, report, chosen = copies_of(on_npu, RECORDING)
    assert host_copies(report) != expected_whisper_copies(chosen)


def shapes_of(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(name, shapes) for name, calls in report["operators"].items() for shapes in calls["shapes"]}


def test_shapes_do_not_depend_on_the_recording(on_npu: Opened):
    """An NPU compiles for each new shape."""
    first, second = (copies_of(on_npu, path) for path in (RECORDING, OTHER))
    assert shapes_of(first[1]) == shapes_of(second[1])
    assert first[0].audio.duration_s != second[0].audio.duration_s
    on_npu.recognize(ROOT / "samples" / "long_en.wav")
    assert set(on_npu.engine.probe.shapes().values()) == {1}


def test_another_shape_shows(on_npu: Opened):
    _, plain, _ = copies_of(on_npu, RECORDING)
    simulator.clear_record()
    on_npu.recognize(RECORDING, initial_prompt="a longer prompt that takes another prefill graph")
    assert shapes_of(plain) != shapes_of(simulator.report())


def flag_events() -> dict[str, tuple[str, int]]:
    events = simulator.report()["events"]
    return {event["name"]: (event["value"], event["operators_before"]) for event in events}


@pytest.mark.parametrize("name", ENGINES)
def test_flags_are_set_before_the_first_operator(name: str):
    simulator.clear_record()
    engine = load_engine(ARTIFACT, name, "npu:0", 1, EngineSettings())
    found = flag_events()
    run_case(engine, ARTIFACT.content.graphs["encoder"], Golden(ARTIFACT), ENCODER)
    assert simulator.report()["operators_run"]
    assert flag_events() == found
    assert found == dict.fromkeys(FLAGS, ("False", 0))


def test_flags_after_an_operator_show():
    simulator.clear_record()
    torch.zeros(1, device="npu")
    opened("torchscript")
    assert all(before == 1 for _, before in flag_events().values())


def encoder_error(run: Opened) -> float:
    """Relative L2 of the encoder's worst output against the same engine on the CPU."""
    graph, golden = ARTIFACT.content.graphs["encoder"], Golden(ARTIFACT)
    engines = run.engine, shared(run.engine.name, "cpu").engine
    found, expected = (run_case(engine, graph, golden, ENCODER) for engine in engines)
    return max(float(np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])) for name in found)


@pytest.mark.parametrize("soc", ["910B4", "910_9391"])
def test_fp32_is_fp32(soc: str, monkeypatch: pytest.MonkeyPatch):
    """And is not under the device's own defaults."""
    monkeypatch.setenv("NPU_SIMULATOR_SOC", soc)
    simulator.restart()
    assert encoder_error(opened("torchscript", default_precision=True)) > 2e-5
    run = opened("torchscript")
    assert encoder_error(run) < 2e-6
    assert run.engine.probe.facts.versions["soc"] == f"Ascend{soc}"
    assert alike(said(run.recognize(RECORDING)), said(shared("torchscript", "cpu").recognize(RECORDING)))


def test_capture_says_the_same():
    expected = said(shared("torchscript", "cpu").recognize(RECORDING))
    run = opened("torchscript", capture=True)
    run.recognize(OTHER)
    simulator.clear_record()
    assert alike(said(run.recognize(RECORDING)), expected)
    assert replays() > 3


def test_capture_that_keeps_an_input_shows(monkeypatch: pytest.MonkeyPatch):
    """A recording reads its inputs where they lay; an engine that forgets to copy them there is found out."""
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, *_: self)
    with pytest.raises(Exception, match="captured graph differs from the eager one"):
        opened("torchscript", capture=True).recognize(RECORDING)
