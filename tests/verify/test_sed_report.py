"""The report of a model that hears sounds: of the pocket model as it is, and of events made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from handmade import HOSTILE, artifact, results
from test_report import Page, words

from runtime.artifact import open_artifact
from verify.inference import EngineInference, GoldenRecording, InferenceFile, InferenceRecording
from verify.report import render_report
from verify.results import EventAccuracy
from verify.results_folder import Results
from verify.run import VerifyResult
from verify.timeline import Timeline, recording_sounds

FAMILY = "sed"
DASH = "\u2013"


@pytest.fixture(scope="module")
def page(verified: VerifyResult) -> Page:
    return Page(verified.report.read_text())


def read(result: VerifyResult, name: str) -> Any:
    return json.loads((result.report.parent / "results" / name).read_text())


def test_pocket_passes_on_both_engines(verified: VerifyResult) -> None:
    assert verified.verdict == "pass", verified.summary
    engines = read(verified, "accuracy.json")["engines"]
    assert [(e["engine"], e["verdict"]) for e in engines] == [("onnxruntime", "pass"), ("torchscript", "pass")]


def test_results_hold_decisions_and_events(verified: VerifyResult) -> None:
    content = open_artifact(verified.report.parent).content
    cases = {case.name for case in content.cases if case.graph == "head"}
    for engine in read(verified, "accuracy.json")["engines"]:
        assert {run["name"] for run in engine["frame_decisions"]} == cases
        assert engine["teacher_forced"] == []
        for recording in engine["recordings"]:
            assert recording["event_f1"] == 1
            assert recording["annotated_event_f1"] == recording["golden_annotated_event_f1"] > 0.8
            assert recording["annotated_segment_f1"] == recording["golden_annotated_segment_f1"] > 0.8
    for engine in read(verified, "inference.json")["engines"]:
        assert [r["name"] for r in engine["recordings"]] == [r.name for r in content.recordings]
        for found, golden in zip(engine["recordings"], content.recordings, strict=True):
            assert [e["label"] for e in found["result"]["events"]] == [e["label"] for e in golden.result["events"]]
    for engine in read(verified, "performance.json")["engines"]:
        assert engine["end_to_end"]["tokens"] is engine["end_to_end"]["tokens_per_s"] is None
        assert engine["end_to_end"]["rtf"] > 0


def test_page_has_sounds_and_no_texts(page: Page) -> None:
    text = words(page)
    assert "Sounds Event-F1 with collars of 200 ms" in text
    assert "Decisions, scores at their thresholds" in text
    assert "Texts" not in text
    assert "golden tokens" not in text
    assert "decisions.kl" not in text
    assert "task.events" in text
    assert f"tokens {DASH} tokens per second {DASH}" in text
    assert "None" not in text
    assert "rect" in page.tags


def test_page_of_a_model_that_hears_text_has_no_sounds(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    text = words(Page(render_report(made, results(made))))
    assert "Texts" in text
    assert "golden tokens" in text
    for other in ("Sounds", "thresholds", "task.events", "decisions.scores"):
        assert other not in text


def events(*found: tuple[float, float, str]) -> list[dict[str, Any]]:
    return [{"onset": onset, "offset": offset, "label": label, "score": 0.9} for onset, offset, label in found]


def by_hand(path: Path, golden: list[dict[str, Any]], heard: list[dict[str, Any]], said: Any = None) -> Results:
    """Return results of ONNX Runtime as golden, of TorchScript with `heard`, and of a pt2 engine that is blocked."""
    made = results(artifact(path))
    recording = GoldenRecording(
        name="street",
        file="audio/street.wav",
        reference=None if said is None else {"events": said},
        result={"events": golden, "tags": []},
    )
    inference = InferenceFile.model_validate(
        {
            **made.inference.model_dump(by_alias=True),
            "golden": [recording],
            "engines": [
                EngineInference(
                    engine=engine,
                    device="cpu",
                    recordings=(InferenceRecording(name="street", result={"events": found, "tags": []}),),
                )
                for engine, found in (("onnxruntime", golden), ("torchscript", heard))
            ],
        }
    )
    judged = [
        EventAccuracy(name="street", event_f1=1.0, moved_s=0.0, tags_error=0.0, golden_annotated_event_f1=0.25),
        EventAccuracy(name="street", event_f1=0.5, moved_s=0.0, tags_error=math.inf, annotated_event_f1=0.125),
        EventAccuracy(name="street", blocked=f"no kernel {HOSTILE}"),
    ]
    engines = [
        engine.model_copy(update={"recordings": (found,), "teacher_forced": ()})
        for engine, found in zip(made.accuracy.engines, judged, strict=True)
    ]
    accuracy = made.accuracy.model_copy(update={"engines": tuple(engines)})
    return Results(accuracy, made.performance, inference, made.environment)


GOLDEN = events((1.0, 2.0, "Siren"), (0.5, 4.0, f"Dog {HOSTILE}"))
HEARD = events((1.0, 2.0, "Siren"), (3.0, 3.04, "Click"))


def test_who_heard_what(tmp_path: Path) -> None:
    said = events((1.0, 2.0, "Siren"))
    found = by_hand(tmp_path, GOLDEN, HEARD, said)
    (recording,) = recording_sounds(found.accuracy, found.inference)
    lines = {line.who: line for line in recording.lines}
    assert list(lines) == ["golden", "onnxruntime", "torchscript", "pt2", "person"]
    assert [line.kind for line in recording.lines] == ["golden", "engine", "engine", "engine", "person"]
    assert lines["golden"].annotated_event_f1 == 0.25
    assert lines["torchscript"].annotated_event_f1 == 0.125
    assert lines["pt2"].events is None
    assert lines["pt2"].remark == f"no kernel {HOSTILE}"
    text = words(Page(render_report(artifact(tmp_path), found)))
    assert f"no kernel {HOSTILE}" in text
    assert f"onnxruntime: Dog {HOSTILE}, 0.5 to 4.0 s" in text
    assert f"event-F1 0.500 against the golden run 2 0.500 ∞ 0.125 {DASH}" in text
    assert "3.00 s 3.04 s Click" in text


def timeline(path: Path, *lists: list[dict[str, Any]]) -> Timeline:
    found = by_hand(path, *lists)
    drawn = recording_sounds(found.accuracy, found.inference)[0].timeline
    assert drawn is not None
    return drawn


def test_timeline_has_a_lane_for_each_that_ran_and_each_label(tmp_path: Path) -> None:
    drawn = timeline(tmp_path, GOLDEN, HEARD, events((1.1, 2.0, "Siren")))
    assert [label for _, label in drawn.labels] == [f"Dog {HOSTILE}", "Siren", "Click"], "by first onset"
    assert [lane.who for lane in drawn.lanes] == ["golden", "onnxruntime", "torchscript", "person"] * 3
    assert [len(lane.bars) for lane in drawn.lanes] == [1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 1, 0]
    assert [label for _, label in drawn.ticks] == ["0", "0.5", "1", "1.5", "2", "2.5", "3", "3.5", "4"]


@pytest.mark.parametrize("end", [0.04, 0.9, 7.3, 61.0, 5000.0])
def test_timeline_is_inside_its_frame(tmp_path: Path, end: float) -> None:
    drawn = timeline(tmp_path, events((0.0, end / 3, "A"), (end / 2, end, "B")), events((end - 0.04, end, "A")))
    bars = [bar for lane in drawn.lanes for bar in lane.bars]
    assert all(drawn.left <= bar.x < bar.x + bar.width <= drawn.width for bar in bars)
    assert all(0 < y < drawn.height for y, _ in drawn.labels)
    assert all(lane.y + 10 < drawn.height for lane in drawn.lanes)
    assert all(drawn.left <= x <= drawn.width for x, _ in drawn.ticks)
    assert 3 <= len(drawn.ticks) <= 10
    # The place of an edge is its time: A ends at a third.
    first = drawn.lanes[0].bars[0]
    whole = max(bar.x + bar.width for bar in bars) - drawn.left
    assert (first.x + first.width - drawn.left) / whole == pytest.approx(1 / 3, abs=0.01)


def test_timeline_keeps_the_labels_heard_longest(tmp_path: Path) -> None:
    golden = events(*((0.1 * index, 0.1 * index + 0.5 + 0.1 * index, f"label {index}") for index in range(15)))
    drawn = timeline(tmp_path, golden, [])
    assert [label for _, label in drawn.labels] == [f"label {index}" for index in range(3, 15)]
    assert drawn.left_out == 3
    text = words(Page(render_report(artifact(tmp_path), by_hand(tmp_path, golden, []))))
    assert "The 12 labels heard longest; 3 more in the table of every event." in text
    assert "0.00 s 0.50 s label 0" in text


def test_nobody_hears_anything(tmp_path: Path) -> None:
    found = by_hand(tmp_path, [], [])
    assert recording_sounds(found.accuracy, found.inference)[0].timeline is None
    assert "street audio/street.wav no events" in words(Page(render_report(artifact(tmp_path), found)))
