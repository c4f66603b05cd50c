"""verify_artifact on Granite Speech: what its files and its report hold that others do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.pipeline import export_model
from runtime.artifact import open_artifact
from runtime.golden import Golden
from runtime.manifest import Content, Variant
from verify.run import VerifyResult, verify_artifact

FAMILY = "granite"
STAGES = ["features (host)", "encode_project", "embed", "prefill", "decode"]


def read(result: VerifyResult, name: str) -> Any:
    return json.loads((result.report.parent / "results" / name).read_text())


def test_it_passes_as_golden(verified: VerifyResult, content: Content) -> None:
    assert verified.verdict == "pass", verified.summary
    [engine] = read(verified, "accuracy.json")["engines"]
    assert [recording["name"] for recording in engine["recordings"]] == [r.name for r in content.recordings]
    for recording in engine["recordings"]:
        assert recording["text_equal"]
        assert recording["times_equal"]
        assert recording["tokens_equal"]
        assert recording["blamed"] is None


def test_every_stage_is_judged_and_every_output(verified: VerifyResult, content: Content) -> None:
    [engine] = read(verified, "accuracy.json")["engines"]
    assert list(dict.fromkeys(case["graph"] for case in engine["cases"])) == STAGES
    found = {(case["graph"], case["case"]): [o["name"] for o in case["outputs"]] for case in engine["cases"]}
    for case in content.cases:
        there = [spec.name for spec in content.graphs[case.graph].outputs if spec.name in case.outputs]
        assert found.pop((case.graph, case.name)) == there
    assert found == {("features (host)", "recording_short_en"): ["features"]}


def test_golden_rows_predict_the_golden_tokens(granite_artifact: Path, content: Content) -> None:
    """One row for each token of the answer, behind a prompt with the sound in it."""
    golden = Golden(open_artifact(granite_artifact))
    cases = {case.name: case for case in content.cases}
    assert len(content.teacher_forced) > 1
    for run in content.teacher_forced:
        logits = golden.array(run.logits)
        assert logits.argmax(axis=1).tolist() == list(run.tokens[run.prompt :])
        frames = int(golden.array(cases[run.encoder_case].inputs["length"].key)[0])
        audio = run.tokens[: run.prompt].count(content.settings["audio_token"])
        assert audio == -(-frames // content.dims["window"]) * content.dims["window"] // content.dims["downsample"]


def test_what_must_not_be_read_holds_garbage(granite_artifact: Path, content: Content) -> None:
    """In golden inputs: padding of the audio, of the prompt, and cache rows."""
    golden = Golden(open_artifact(granite_artifact))
    cases = {case.name: golden.inputs(case) for case in content.cases}
    features = cases["garbage"]["features"]
    padding = features.reshape(-1, features.shape[-1])[int(cases["garbage"]["length"][0]) :]
    assert padding.size
    assert np.unique(padding).tolist() == [3.0]
    padded = cases["prefill_padded"]
    assert np.unique(padded["embeds"][0, int(padded["length"][0]) :]).tolist() == [3.0]
    for case in content.cases:
        if case.graph == "decode":
            inputs = cases[case.name]
            assert np.unique(inputs["k"][:, :, int(inputs["pos"][0]) :]).tolist() == [1e4]


def test_times_are_those_of_a_recording(verified: VerifyResult, content: Content) -> None:
    [engine] = read(verified, "performance.json")["engines"]
    assert set(engine["graphs"]) == set(content.graphs)
    run = engine["end_to_end"]
    assert run["tokens"] == len(content.recordings[0].result["segments"][0]["tokens"])
    assert set(run["split_s"]) == {"frontend_s", "encoder_s", "prefill_s", "decode_s", "total_s"}
    assert run["work"] == {}


def test_the_report_shows_stages_margins_and_sources(verified: VerifyResult) -> None:
    page = verified.report.read_text()
    for words in (*STAGES, "forced_transcribe", "least margin", "logits divided by logits_scaling"):
        assert words in page
    assert "decisions.scores" not in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "verdicts"),
    [
        ("fp32", {"onnxruntime": "pass", "torchscript": "pass", "pt2": "pass"}),
        ("fp16", {"onnxruntime": "pass", "torchscript": "pass", "pt2": "pass"}),
        ("bf16", {"onnxruntime": "blocked", "torchscript": "pass", "pt2": "pass"}),
    ],
)
def test_pocket_passes_on_every_engine(variant: Variant, verdicts: dict[str, str], tmp_path: Path) -> None:
    """With all controls; ONNX Runtime has no bf16 on the CPU."""
    path = export_model(
        "granite-pocket", weights="random", variant=variant, formats=("onnx", "torchscript", "pt2"), out=tmp_path
    )
    result = verify_artifact(path, runs=0, threads=1, controls=True)
    assert result.verdict == "pass", result.summary
    assert {engine.engine: engine.verdict for engine in result.results.accuracy.engines} == verdicts
