"""Gates of sound events, from results made by hand: what fails, by which name, and where."""

from __future__ import annotations

import math

import pytest
from handmade import FP16, FP32, case

from verify.gates import gates_of, verdict_of
from verify.questions import QUESTIONS, SOUND_GATES, TEXT_GATES
from verify.results import EventAccuracy, FrameDecisions, Gate


def scores(name: str = "speech", **changes: object) -> FrameDecisions:
    values = {"band": 0.02, "decisions": 4000, "near": 1, "classes": 8, "max_score_error": 1e-3, "head_error": 1e-7}
    return FrameDecisions.model_validate({"name": name, **values, **changes})


def heard(name: str = "sed_1", **changes: object) -> EventAccuracy:
    fine = {"event_f1": 1.0, "moved_s": 0.0, "beyond_steps": 0.0, "scores_error": 1e-4, "tags_error": 1e-4}
    return EventAccuracy.model_validate({"name": name, "repeats": True, **fine, **changes})


def judged(decisions: list[FrameDecisions], recordings: list[EventAccuracy]) -> dict[str, Gate]:
    cases = [case("frontend", "speech_audio", 1e-6), case("head", "speech", 1e-3, precision=True)]
    return {gate.name: gate for gate in gates_of(cases, decisions, recordings, "fp16", FP16)}


def failed(gates: dict[str, Gate]) -> list[tuple[str, float | None, str]]:
    return [(gate.name, gate.value, gate.where) for gate in gates.values() if gate.passed is False]


def test_all_gates_hold() -> None:
    gates = judged([scores(), scores("sounds")], [heard()])
    assert set(gates) == {
        "structure.relative_l2",
        "structure.max_relative",
        "precision.relative_l2",
        "precision.row_l2",
        "overflow.non_finite",
        "overflow.at_limit",
        "task.repetition",
        *SOUND_GATES,
    }
    assert verdict_of(tuple(gates.values())) == ("pass", "all 14 gates hold")
    assert gates["decisions.scores"].note == "8000 decisions; 2 more flipped within the 0.02"


@pytest.mark.parametrize(
    ("changes", "gate", "value"),
    [
        ({"flipped": 1}, "decisions.scores", 1),
        ({"moved": 2}, "decisions.frames", 2),
        ({"head_error": 1.1e-4}, "structure.head", 1.1e-4),
        ({"head_error": math.inf}, "structure.head", math.inf),
    ],
)
def test_decisions(changes: dict[str, float], gate: str, value: float) -> None:
    assert failed(judged([scores(), scores("sounds", **changes)], [heard()])) == [(gate, value, "sounds")]


@pytest.mark.parametrize(
    ("changes", "gate", "value"),
    [
        ({"event_f1": 0.98}, "task.events", pytest.approx(0.02)),
        ({"beyond_steps": 2}, "task.event_times", 2),
        ({"beyond_steps": math.inf}, "task.event_times", math.inf),
        ({"scores_error": 0.021}, "task.event_scores", 0.021),
        ({"tags_error": 0.021}, "task.tags", 0.021),
        ({"tags_error": math.inf}, "task.tags", math.inf),
    ],
)
def test_task(changes: dict[str, float], gate: str, value: float) -> None:
    assert failed(judged([scores()], [heard(), heard("sed_2", **changes)])) == [(gate, value, "sed_2")]


def test_one_event_of_two_hundred_may_be_lost() -> None:
    assert failed(judged([scores()], [heard(event_f1=0.995)])) == []


def test_what_did_not_run_is_blocked() -> None:
    gates = judged([FrameDecisions(name="speech", blocked="no kernel")], [EventAccuracy(name="sed_1", blocked="no")])
    assert {name for name, gate in gates.items() if gate.passed is None} == {*SOUND_GATES, "task.repetition"}
    verdict, reason = verdict_of(tuple(gates.values()))
    assert verdict == "blocked"
    assert "decisions.scores" in reason


def test_an_artifact_that_hears_sounds_has_no_gates_of_texts() -> None:
    assert not TEXT_GATES & set(judged([scores()], [heard()]))
    assert set(QUESTIONS) > TEXT_GATES | SOUND_GATES
    assert not TEXT_GATES & SOUND_GATES
    assert not SOUND_GATES & {gate.name for gate in gates_of([case("encoder", "speech", 0)], [], [], "fp32", FP32)}
