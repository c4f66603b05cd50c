"""verify_artifact on parakeet-pocket: what its files and its report hold that others do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.artifact import open_artifact
from runtime.errors import InputError
from runtime.golden import Golden
from runtime.manifest import Content
from verify.evidence import unfounded
from verify.results import AccuracyFile
from verify.run import VerifyResult, verify_artifact

FAMILY = "parakeet"


def read(result: VerifyResult, name: str) -> Any:
    return json.loads((result.report.parent / "results" / name).read_text())


def test_pocket_passes_on_both_engines(verified: VerifyResult) -> None:
    assert verified.verdict == "pass", verified.summary
    engines = read(verified, "accuracy.json")["engines"]
    assert [(e["engine"], e["verdict"]) for e in engines] == [("onnxruntime", "pass"), ("torchscript", "pass")]
    for engine in engines:
        for recording in engine["recordings"]:
            assert recording["text_equal"]
            assert recording["times_equal"]
            assert recording["tokens_equal"]
            assert recording["blamed"] is None
            # What a hotword makes of a recording is not what is said in it.
            right = None if recording["name"].endswith("_hotword") else 0
            assert recording["wer"] == recording["golden_wer"] == right


def test_a_verdict_whose_batch_was_taken_out_is_unfounded(verified: VerifyResult) -> None:
    artifact = open_artifact(verified.report.parent)
    accuracy = read(verified, "accuracy.json")
    assert unfounded(artifact, AccuracyFile.model_validate(accuracy)) is None
    batched = [one for one in accuracy["engines"][0]["recordings"] if one["in_batch"]]
    assert batched[1:]
    batched[-1]["in_batch"] = None
    problem = unfounded(artifact, AccuracyFile.model_validate(accuracy))
    assert problem == f"onnxruntime: the recording {batched[-1]['name']} was not heard in a batch"


def test_every_output_of_every_graph_is_judged(verified: VerifyResult, content: Content) -> None:
    for engine in read(verified, "accuracy.json")["engines"]:
        found = {(case["graph"], case["case"]): [o["name"] for o in case["outputs"]] for case in engine["cases"]}
        assert {graph for graph, _ in found} == set(content.graphs)
        for case in content.cases:
            assert found[case.graph, case.name] == [spec.name for spec in content.graphs[case.graph].outputs]


def test_the_search_is_judged_step_by_step(parakeet_artifact: Path, content: Content) -> None:
    """Every step of the search has a row: tokens and blanks, and what it decides is what was heard."""
    [run] = content.teacher_forced
    logits = Golden(open_artifact(parakeet_artifact)).array(run.logits)
    n_tokens = content.dims["n_vocab"] + 1
    chosen = logits[:, :n_tokens].argmax(axis=1)
    assert tuple(chosen[chosen < n_tokens - 1].tolist()) == run.tokens
    first = content.recordings[0]
    assert run.encoder_case == f"{first.name}_recording"
    assert [token for segment in first.result["segments"] for token in segment["tokens"]] == list(run.tokens)
    moved = np.array(content.settings["durations"])[logits[:, n_tokens:].argmax(axis=1)]
    moved = np.where(chosen == n_tokens - 1, np.maximum(moved, 1), moved)
    case = next(case for case in content.cases if case.name == run.encoder_case)
    length = int(Golden(open_artifact(parakeet_artifact)).array(case.outputs["frames_len"].key)[0])
    assert moved[:-1].sum() < length <= moved.sum()


def test_a_recording_can_be_decoded_again(content: Content) -> None:
    cases = {case.name: case for case in content.cases}
    for recording in content.recordings:
        assert cases[f"{Path(recording.file).stem}_recording"].graph == "encoder"


def test_times_are_those_of_a_recording(verified: VerifyResult, content: Content) -> None:
    for engine in read(verified, "performance.json")["engines"]:
        assert set(engine["graphs"]) == set(content.graphs)
        run = engine["end_to_end"]
        assert run["tokens"] == len(content.teacher_forced[0].tokens)
        assert set(run["split_s"]) == {"frontend_s", "encoder_s", "decode_s", "total_s"}
        # The host is no device.
        assert run["work"] == {}


def test_the_report_shows_texts_margins_and_sources(verified: VerifyResult, content: Content) -> None:
    page = verified.report.read_text()
    for recording in content.recordings:
        assert recording.result["text"] in page
    assert "least margin" in page
    assert "search durations" in page
    assert "decisions.scores" not in page
    assert "ParakeetEncoder" in page


def test_a_case_by_name(parakeet_artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(parakeet_artifact, tmp_path / "fp32"))
    with pytest.raises(InputError, match="'step_9': parakeet-pocket has none by that name"):
        verify_artifact(copy, runs=0, cases=["step_9"], engines=["onnxruntime"])
    result = verify_artifact(copy, runs=0, cases=["step_*", "search"], engines=["onnxruntime"])
    [engine] = result.results.accuracy.engines
    assert {case.graph for case in engine.cases} == {"step"}
    assert len(engine.teacher_forced) == 2
    assert not engine.recordings
