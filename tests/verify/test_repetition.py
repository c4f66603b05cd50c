"""Faults that do not show in every call: what ran once well runs again behind all others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.artifact import open_artifact
from runtime.engines import open_engine
from verify.accuracy import judge_engine
from verify.faults import Arrays, Fault, FaultyEngine, RunGraph
from verify.golden import select


class Nth:
    """A graph that is right but in its nth call, and in all behind it if `on`."""

    def __init__(self, nth: int, *, on: bool) -> None:
        self.calls, self.nth, self.on = 0, nth, on

    def __call__(self, run: RunGraph, inputs: Arrays) -> Arrays:
        self.calls += 1
        outputs = run(inputs)
        wrong = self.calls >= self.nth if self.on else self.calls == self.nth
        return {name: array * 2 if wrong else array for name, array in outputs.items()}


def verdict(path: Path, fault: Callable[[RunGraph, Arrays], Arrays], graph: str) -> tuple[str, set[str]]:
    artifact = open_artifact(path)
    engine = open_engine(artifact, "onnxruntime", "cpu", 1)
    try:
        faulty = FaultyEngine(engine, artifact, Fault("now and then", graph, "", fault))
        accuracy, _ = judge_engine(artifact, faulty, selected=select(artifact, None))
    finally:
        engine.close()
    return accuracy.verdict, {gate.name for gate in accuracy.gates if gate.passed is False}


@pytest.mark.parametrize("on", [False, True], ids=["once", "from then on"])
def test_a_case_that_goes_wrong_the_second_time(sed_artifact: Path, on: bool) -> None:  # noqa: FBT001
    sound = Nth(10**9, on=False)
    assert verdict(sed_artifact, sound, "head") == ("pass", set())
    cases = sum(case.graph == "head" for case in open_artifact(sed_artifact).content.cases)
    windows = (sound.calls - 3 * cases) // 2
    # Behind the cases, the decisions, which run them too, and the recordings.
    found, gates = verdict(sed_artifact, Nth(2 * cases + windows + 1, on=on), "head")
    assert found == "fail"
    assert "structure.relative_l2" in gates


def test_a_recording_in_which_something_else_is_heard_the_second_time(sed_artifact: Path) -> None:
    sound = Nth(10**9, on=False)
    verdict(sed_artifact, sound, "head")
    assert verdict(sed_artifact, Nth(sound.calls, on=False), "head") == ("fail", {"task.repetition"})
