"""Gates: what holds, what fails, what is blocked, and by which name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from handmade import FP16, FP32, case, forced, recording

from runtime.differences import compare, is_below_fp32
from runtime.manifest import Graph, TensorSpec, Tolerances, Variant
from verify.gates import gates_of, judge_forced, overall, verdict_of
from verify.results import CaseAccuracy, ForcedAccuracy, Gate, RecordingAccuracy
from verify.transcripts import first_difference

BLOCKED = CaseAccuracy(graph="step", case="step_4", precision=False, blocked="no kernel")


def judged(
    cases: Sequence[CaseAccuracy] = (),
    runs: Sequence[ForcedAccuracy] = (),
    recordings: Sequence[RecordingAccuracy] = (),
    variant: Variant = "fp32",
    tolerances: Tolerances = FP32,
) -> dict[str, Gate]:
    return {gate.name: gate for gate in gates_of(cases, runs, recordings, variant, tolerances)}


def test_all_gates_hold() -> None:
    gates = judged([case("encoder", "speech", 1e-6)], [forced()], [recording()])
    assert list(gates) == [
        "structure.relative_l2",
        "structure.max_relative",
        "decisions.tokens",
        "decisions.kl",
        "task.text",
        "task.times",
        "task.tokens",
        "task.reference",
        "overflow.non_finite",
        "overflow.at_limit",
    ]
    assert verdict_of(tuple(gates.values())) == ("pass", "all 10 gates hold")


def test_the_worst_output_decides_and_is_named() -> None:
    gate = judged([case("encoder", "speech", 1e-6, 2e-4), case("step", "step_4", 1e-5)])["structure.relative_l2"]
    assert (gate.value, gate.limit, gate.passed, gate.where) == (2e-4, 1e-4, False, "encoder/speech out_1")


def test_max_relative_is_a_gate_of_its_own() -> None:
    gates = judged([case("encoder", "speech", 1e-6, max_relative=2e-4)])
    assert gates["structure.relative_l2"].passed is True
    assert gates["structure.max_relative"].passed is False


def test_fp16_variant() -> None:
    """Its fp32 graphs keep the limits of gate 1; the others get those of gate 2."""
    cases = [case("frontend", "speech_audio", 5e-4), case("encoder", "speech", 5e-3, precision=True)]
    gates = judged(cases, variant="fp16", tolerances=FP16)
    assert gates["structure.relative_l2"].passed is False
    assert gates["structure.relative_l2"].limit == 1e-4
    assert gates["precision.relative_l2"].passed is True
    assert gates["precision.mean_relative"].passed is False, "three times relative L2 by hand: 1.5 %"


def test_one_blocked_case_blocks_what_would_hold() -> None:
    gates = judged([case("encoder", "speech", 1e-6), BLOCKED])
    gate = gates["structure.relative_l2"]
    assert gate.passed is None
    assert "step/step_4" in gate.note
    verdict, reason = verdict_of(tuple(gates.values()))
    assert verdict == "blocked"
    assert "structure.relative_l2" in reason


def test_a_blocked_case_does_not_hide_a_failure() -> None:
    gates = judged([case("encoder", "speech", 1.0), BLOCKED])
    assert gates["structure.relative_l2"].passed is False
    assert verdict_of(tuple(gates.values()))[0] == "fail"


def test_nothing_run_is_blocked() -> None:
    assert verdict_of(()) == ("blocked", "no case of this artifact was run")


def test_infinite_error_fails() -> None:
    gate = judged([case("encoder", "speech", math.inf, non_finite=3)])
    assert gate["structure.relative_l2"].passed is False
    assert gate["overflow.non_finite"].value == 3
    assert Gate.model_validate_json(gate["structure.relative_l2"].model_dump_json()).value == math.inf


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"flipped": 1}, "decisions.tokens"),
        ({"kl_max": 2e-3}, "decisions.kl"),
    ],
)
def test_decisions(changes: dict[str, float], name: str) -> None:
    failed = [gate.name for gate in judged(runs=[forced(**changes)]).values() if gate.passed is False]
    assert failed == [name]


def test_no_decisive_position_decides_nothing() -> None:
    assert judged(runs=[forced(decided=0)])["decisions.tokens"].passed is None


@pytest.mark.parametrize("what", ["text", "times", "tokens"])
def test_task(what: str) -> None:
    gates = judged(recordings=[recording(), recording("long_en", **{f"{what}_equal": False})])
    failed = [(gate.name, gate.value, gate.where) for gate in gates.values() if gate.passed is False]
    assert failed == [(f"task.{what}", 1, "long_en")]


def test_overall_verdict() -> None:
    assert overall(["pass", "blocked"]) == "pass"
    assert overall(["pass", "fail", "blocked"]) == "fail"
    assert overall(["blocked", "blocked"]) == "blocked"
    assert overall([]) == "blocked"


def test_decisive_positions_by_hand() -> None:
    # Limit 1e-4 of the largest logit, 10: a margin counts from 2e-3 on.
    golden = np.array([[10.0, 9.0, 0.0], [10.0, 9.9985, 0.0], [0.0, 1.0, 10.0]], np.float32)
    swapped = golden[:, [1, 0, 2]]
    found = judge_forced("forced", golden, swapped, FP32)
    assert (found.positions, found.decided, found.flipped, found.agreed) == (3, 2, 1, 1)


def test_measured_error_would_never_flag_a_flip() -> None:
    """Why the allowed error bounds the margin: with the measured one, swapped tokens pass."""
    golden = np.array([[10.0, 9.0, 0.0]], np.float32)
    swapped = golden[:, [1, 0, 2]]
    margin, measured = 1.0, compare(swapped, golden, "float32").max_abs
    assert margin <= 2 * measured
    assert judge_forced("forced", golden, swapped, FP32).flipped == 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_graph_with_a_narrow_tensor_is_below_fp32(dtype: str) -> None:
    graph = Graph(
        inputs=(TensorSpec(name="tokens", dtype="int64", shape=(1, 1)), TensorSpec(name="k", dtype=dtype, shape=(1,))),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(1,)),),
        files={},
    )
    assert is_below_fp32(graph) is (dtype != "float32")


@pytest.mark.parametrize(
    ("golden", "found", "first"),
    [([], [], None), ([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1, 2], [1], 1), ([], [4], 0), ([1], [1, 2], 1)],
)
def test_first_difference(golden: list[int], found: list[int], first: int | None) -> None:
    assert first_difference(golden, found) == first


def test_a_golden_text_that_nobody_said_fails() -> None:
    """Whatever the device does: the artifact itself is wrong."""
    gates = judged(recordings=[recording(), recording("jfk", reference={"kind": "WER", "value": 1.0, "length": 7})])
    gate = gates["task.reference"]
    assert (gate.value, gate.limit, gate.passed, gate.where) == (1.0, 0.5, False, "jfk (WER)")


def test_a_recording_in_another_language_is_not_judged() -> None:
    lacking = {"kind": "WER", "value": 1.0, "length": 7, "not_judged": "it is in 'en', and the model writes ja"}
    gate = judged(recordings=[recording(), recording("jfk", reference=lacking)])["task.reference"]
    assert (gate.value, gate.passed) == (0.125, True)
    assert gate.note == "not judged: jfk: it is in 'en', and the model writes ja"
    assert "task.reference" not in judged(recordings=[recording("jfk", reference=lacking)])
