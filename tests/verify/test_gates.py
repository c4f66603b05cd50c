"""Gates: what holds, what fails, what is blocked, and by which name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from handmade import FP16, FP32, case, forced, recording

from runtime.differences import compare
from runtime.limits import judge
from runtime.manifest import Content, HeadDecisions, Recording, Tolerances, Variant
from runtime.results import AudioInfo, Segment, Transcript
from verify.decisions import judge_forced, most_flips
from verify.gates import gates_of, overall, verdict_of
from verify.results import CaseAccuracy, ForcedAccuracy, Gate, RecordingAccuracy
from verify.transcripts import first_difference, judge_transcript
from verify.words import answer, independent, loss_bounds

BF16 = FP16.model_copy(update={"rules": {**FP16.rules, "bf16": FP16.rules["fp16"]}})
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
        "ports.relative_l2",
        "decisions.tokens",
        "decisions.kl",
        "task.text",
        "task.times",
        "task.tokens",
        "task.reference",
        "task.repetition",
        "overflow.non_finite",
        "overflow.at_limit",
    ]
    assert verdict_of(tuple(gates.values())) == ("pass", "all 12 gates hold")


def test_what_is_heard_twice_has_to_be_the_same() -> None:
    gate = judged(recordings=[recording(), recording("other", repeats=False)])["task.repetition"]
    assert (gate.value, gate.passed, gate.where) == (1.0, False, "other")


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
    assert gates["precision.row_l2"].passed is False, "three times relative L2 by hand: 1.5 %"


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
        ({"kl": 2e-3}, "decisions.kl"),
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


def test_another_text_from_a_near_tie_on_is_counted_by_words() -> None:
    other = {"text_equal": False, "tokens_equal": False, "first_difference": 3, "near_tie": True, "spoken": 300}
    # 15 in one of two recordings are one accident; 8 and 9 in each are a loss.
    for worse, failures in (((0, 0), []), ((0, 2), []), ((0, 15), []), ((8, 9), ["task.words"])):
        gates = judged(
            recordings=[recording(spoken=300, worse=worse[0]), recording("long", worse=worse[1], **other)],
            variant="fp16",
            tolerances=FP16,
        )
        assert [name for name, gate in gates.items() if gate.passed is False] == failures
        assert gates["task.text"].note == "other text or times from a near-tie on: long"
    assert judged(recordings=[recording("long", worse=0, **other)], variant="fp16", tolerances=FP16)[
        "task.words"
    ].note == ("0 of 300 words worse: a loss of at most 1 % is proven")
    # In fp32 nothing is counted, and without a near-tie another text fails.
    assert "task.words" not in judged(recordings=[recording()])
    gates = judged(recordings=[recording(**(other | {"near_tie": False}))], variant="fp16", tolerances=FP16)
    assert gates["task.text"].passed is False


def test_bounds_by_hand() -> None:
    # None worse of n: (1 - p)^n = 0.05, which takes 299 words for 1 %; one worse takes 473.
    assert loss_bounds([(0, 100)]) == (0.0, pytest.approx(1 - 0.05 ** (1 / 100), abs=1e-9))
    assert loss_bounds([(0, 299)])[1] <= 0.01 < loss_bounds([(0, 298)])[1]
    # The same share in each of two recordings: as if all words were independent.
    assert independent([(1, 946), (1, 946)]) == (2, 1892)
    assert loss_bounds([(1, 1)]) == (pytest.approx(0.05), 1.0)  # every word worse: at least 5 %
    assert answer([(1, 50)]).endswith("is not excluded")


def test_words_of_one_recording_are_no_independent_trials() -> None:
    # Kish: 2 * (7.5**2 + 7.5**2) / (600 * 0.025 * 0.975) = 15.38 times the variance of independent words.
    assert independent([(15, 300), (0, 300)]) == (0, 39)
    assert independent([(8, 300), (9, 300)]) == (17, 600)
    assert independent([(2, 7)]) == (0, 1)


GOLDEN_SPEECH = {
    "text": "so ask not",
    "language": "en",
    "segments": [
        {"start": 0.0, "end": 1.0, "text": "so ask", "tokens": [90, 5, 6, 91]},
        {"start": 1.0, "end": 2.0, "text": "not", "tokens": [91, 7, 92]},
    ],
}


def heard_below_fp32(
    margins: Sequence[float], *segments: tuple[float, float, tuple[int, ...]], variant: Variant = "fp16"
) -> RecordingAccuracy:
    """Judge segments against `GOLDEN_SPEECH`; a near-tie is a margin below 0.4."""
    tolerances = FP16.model_copy(update={"decisions": {"tokens": HeadDecisions(positions=9, flips=0, pair_error=0.2)}})
    golden = Recording(
        name="r",
        file="r.wav",
        options={},
        reference=None,
        result=GOLDEN_SPEECH,
        margins={"tokens": tuple(margins)},
    )
    words = {5: "so", 6: "ask", 7: "not", 8: "um"}
    parts = tuple(Segment(start=start, end=end, text="", tokens=tokens) for start, end, tokens in segments)
    text = " ".join(words[token] for _, _, tokens in segments for token in tokens if token in words)
    transcript = Transcript(
        model="m",
        variant=variant,
        device="cpu",
        engine="e",
        audio=AudioInfo("r.wav", 2.0, 16000),
        text=text,
        segments=parts,
    )
    return judge_transcript(golden, transcript, content_of(tolerances, variant), special={90, 91, 92, 93})


# Of the golden decisions: time, so, ask, time; time, not, time; and that nothing follows.
@pytest.mark.parametrize(
    ("place", "segments"),
    [
        (1, [(0, 1, (90, 8, 6, 91)), (1, 2, (91, 7, 92))]),
        (3, [(0, 1.02, (90, 5, 6, 92)), (1.02, 2, (92, 7, 93))]),
        (4, [(0, 1, (90, 5, 6, 91)), (1.2, 2, (92, 7, 93))]),
        (3, [(0, 2, (90, 5, 6, 7, 92))]),
        (7, [(0, 1, (90, 5, 6, 91)), (1, 2, (91, 7, 92)), (2, 3, (92, 8, 93))]),
        (0, []),
    ],
    ids=["token", "end", "start", "one segment", "more", "silence"],
)
def test_only_a_near_tie_excuses_another_decision(place: int, segments: list[tuple[float, float, tuple[int, ...]]]):
    margins = [9.0] * 8
    found = heard_below_fp32(margins, *segments)
    assert (found.near_tie, found.times_equal and found.tokens_equal) == (False, False)
    # What comes behind the first difference is no matter.
    assert not heard_below_fp32([0.1 if at > place else 9.0 for at in range(8)], *segments).near_tie
    margins[place] = 0.39
    assert heard_below_fp32(margins, *segments).near_tie
    assert not heard_below_fp32(margins, *segments, variant="fp32").near_tie
    margins[place] = 0.4
    assert not heard_below_fp32(margins, *segments).near_tie


def test_times_that_move_from_a_near_tie_on_hold_and_lose_no_word() -> None:
    moved = [(0.0, 1.02, (90, 5, 6, 92)), (1.02, 2.0, (92, 7, 93))]
    for margin, passed in ((0.3, True), (0.5, False)):
        found = heard_below_fp32([9, 9, 9, margin, 9, 9, 9, 9], *moved)
        assert (found.text_equal, found.times_equal, found.worse, found.spoken) == (True, False, 0, 3)
        assert judged(recordings=[found], variant="fp16", tolerances=FP16)["task.times"].passed is passed


@pytest.mark.parametrize(
    ("golden", "found", "equal"),
    [((0.2, 0.2), (0.2,), True), ((0.2, 0.0), (0.0, 0.0), False), ((0.2,), (), False), ((None, None), (None,), None)],
)
def test_temperatures_are_those_of_the_golden_run(
    golden: Sequence[float | None], found: Sequence[float | None], *, equal: bool | None
) -> None:
    """However many segments a window's text was cut into; families without temperatures have no such gate."""

    def transcript(temperatures: Sequence[float | None]) -> Transcript:
        parts = tuple(Segment(0.0, 1.0, "so", (5,), temperature=temperature) for temperature in temperatures)
        audio = AudioInfo("r.wav", 2.0, 16000)
        return Transcript(model="m", variant="fp32", device="cpu", engine="e", audio=audio, text="so", segments=parts)

    expected = Recording(name="r", file="r.wav", options={}, reference=None, result=transcript(golden).to_json())
    heard = judge_transcript(expected, transcript(found), content_of(FP32))
    assert heard.temperatures_equal is equal
    gate = judged(recordings=[heard.model_copy(update={"near_tie": True})]).get("task.temperatures")
    assert (gate and gate.passed) is equal


def test_overall_verdict() -> None:
    assert overall(["pass", "blocked"]) == "pass"
    assert overall(["pass", "fail", "blocked"]) == "fail"
    assert overall(["blocked", "blocked"]) == "blocked"
    assert overall([]) == "blocked"


def content_of(tolerances: Tolerances, variant: Variant = "fp32") -> Content:
    return Content.model_construct(variant=variant, tolerances=tolerances)


def forced_by_hand(golden: np.ndarray, found: np.ndarray, content: Content) -> ForcedAccuracy:
    return judge_forced("run", golden, found, content)


def test_decisive_positions_by_hand() -> None:
    # Limit 1e-4 of the largest logit less the row's mean, 11: a margin counts from 2.2e-3 on.
    golden = np.array([[11.0, 10.0, -21.0], [11.0, 10.9985, -21.9985], [-10.0, -1.0, 11.0]], np.float32)
    swapped = golden[:, [1, 0, 2]]
    found = forced_by_hand(golden, swapped, content_of(FP32))
    assert (found.positions, found.decided, found.flipped, found.agreed) == (3, 2, 1, 1)


def test_below_fp32_the_sources_own_error_says_what_a_near_tie_is() -> None:
    golden = np.array([[5.0, 4.0, 0.0], [5.0, 4.9, 0.0]], np.float32)
    swapped = golden[:, [1, 0, 2]]
    for pair_error, flipped in ((0.04, 2), (0.06, 1), (0.6, 0)):
        known = {"tokens": HeadDecisions(positions=2, flips=0, pair_error=pair_error)}
        tolerances = FP16.model_copy(update={"decisions": known})
        found = forced_by_hand(golden, swapped, content_of(tolerances, "fp16"))
        assert (found.near_tie, found.flipped, found.agreed) == (2 * pair_error, flipped, 0)


@pytest.mark.parametrize(
    ("flips", "source", "most"),
    # By hand: of c flips of an engine and none of the source's, all are the engine's with chance 2**-c.
    [(9, 0, 9), (10, 0, 9), (12, 1, 12), (13, 1, 12)],
)
def test_more_flips_than_the_source_has(flips: int, source: int, most: int) -> None:
    assert most_flips(source, 200, 200) == most
    known = {"tokens": HeadDecisions(positions=200, flips=source, pair_error=1.0)}
    runs = [forced(positions=200, agreed=200 - flips)]
    gate = judged(runs=runs, variant="fp16", tolerances=FP16.model_copy(update={"decisions": known}))["decisions.flips"]
    assert (gate.value, gate.limit, gate.passed) == (flips, most, flips <= most)


def test_a_floor_raises_its_own_pool_and_nothing_lowers_a_limit() -> None:
    floors = {"encoder/noise hidden": {"relative_l2": 1e-3}, "encoder/speech hidden": {"relative_l2": 1e-9}}
    tolerances = FP32.model_copy(update={"floors": floors})
    error = compare(np.array([[1.0, 1.001]]), np.array([[1.0, 1.0]]), "float32")
    limits = {}
    for pool in (*floors, "encoder/silence hidden"):
        [one] = [j for j in judge(error, tolerances, "fp32", pool, logits=False) if j.metric == "relative_l2"]
        limits[pool] = one.limit
        assert one.share == pytest.approx(one.value / one.limit)
    assert limits == {
        "encoder/noise hidden": pytest.approx(3e-3),
        "encoder/speech hidden": 1e-4,
        "encoder/silence hidden": 1e-4,
    }


def test_of_many_outputs_that_which_uses_most_of_its_limit_decides() -> None:
    """A larger error in an output that amplifies rounding is none, a smaller one in another is."""
    floors = {"noise": {"relative_l2": 1e-3}}
    tolerances = FP32.model_copy(update={"floors": floors})
    rows = []
    for name, error in (("noise", 1e-3), ("speech", 2e-4)):
        [output] = case("encoder", name, error, max_relative=0.0).outputs
        found = judge(output.difference, tolerances, "fp32", name, logits=False)
        output = output.model_copy(update={"judged": found})
        rows.append(CaseAccuracy(graph="encoder", case=name, precision=False, outputs=(output,)))
    gate = judged(rows, tolerances=tolerances)["structure.relative_l2"]
    assert (gate.where, gate.value, gate.limit, gate.passed) == ("encoder/speech out_0", 2e-4, 1e-4, False)


def test_one_per_cent_is_asked_for_whatever_the_floors_say() -> None:
    tolerances = FP16.model_copy(update={"floors": {"": {"relative_l2": 1.0, "row_l2": 1.0}}})
    [output] = case("encoder", "speech", 0.011, precision=True).outputs
    lenient = judge(output.difference, tolerances, "fp16", "", logits=False)
    one = CaseAccuracy(
        graph="encoder", case="speech", precision=True, outputs=(output.model_copy(update={"judged": lenient}),)
    )
    for real, failures in ((False, []), (True, ["ports.relative_l2"])):
        gates = judged([one.model_copy(update={"real": real})], variant="fp16", tolerances=tolerances)
        assert [name for name, gate in gates.items() if gate.passed is False] == failures
    assert "ports.relative_l2" not in judged([one], variant="bf16", tolerances=BF16)


def test_bf16_says_first_that_it_is_above_one_per_cent() -> None:
    gates = tuple(judged([case("encoder", "speech", 1e-6)]).values())
    verdict, reason = verdict_of(gates, "bf16", 0.047)
    assert verdict == "pass"
    assert reason.startswith("relative L2 up to 4.7 % on real recordings, above the 1 % of ports; all ")
    assert verdict_of(gates, "fp16", 0.004)[1].startswith("all ")


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
