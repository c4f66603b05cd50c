"""verify_artifact on the pocket model: files, verdicts, exit codes, and what bad usage leaves behind."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.artifact import open_artifact
from runtime.differences import log_softmax
from runtime.engines import open_engine
from runtime.engines.base import EngineSettings
from runtime.errors import EnvironmentNotFitError, ExitCode, InputError, NoDeviceError
from runtime.golden import Golden
from verify.results import AccuracyFile
from verify.run import VerifyResult, verify_artifact

SAMPLES = Path(__file__).resolve().parents[2] / "samples"

FILES = ("accuracy.json", "performance.json", "inference.json", "env_info.json")


@pytest.fixture(scope="module")
def verified(pocket_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[VerifyResult, list[str]]:
    copy = Path(shutil.copytree(pocket_artifact, tmp_path_factory.mktemp("verified") / "fp32"))
    lines: list[str] = []
    return verify_artifact(copy, runs=3, threads=1, progress=lines.append), lines


def read(result: VerifyResult, name: str) -> Any:
    return json.loads((result.report.parent / "results" / name).read_text())


def test_pocket_passes_on_both_engines(verified: tuple[VerifyResult, list[str]]) -> None:
    result, _ = verified
    assert result.verdict == "pass", result.summary
    assert result
    assert result.exit_code == ExitCode.OK
    accuracy = read(result, "accuracy.json")
    assert accuracy["verdict"] == "pass"
    assert [(e["engine"], e["verdict"]) for e in accuracy["engines"]] == [
        ("onnxruntime", "pass"),
        ("torchscript", "pass"),
    ]


def test_every_file_says_what_it_is_about(verified: tuple[VerifyResult, list[str]]) -> None:
    result, _ = verified
    artifact = open_artifact(result.report.parent)
    for name in FILES:
        file = read(result, name)
        assert file["model"] == "whisper-pocket"
        assert file["content_sha256"] == artifact.manifest.content_sha256
        assert file["simulated"] is False
        assert file["device"] == "cpu"
        assert file["weights"] == "trained"
        assert file["versions"]["torch"].startswith("2.")
        assert file["flags"]["threads"] == "1"


def test_the_environment_tells_what_arithmetic_there_was(verified: tuple[VerifyResult, list[str]]) -> None:
    result, _ = verified
    there = read(result, "env_info.json")["instruction_sets"].split()
    flags = Path("/proc/cpuinfo").read_text().split()
    assert set(there) <= set(flags)
    assert ("avx2" in there) is ("avx2" in flags)
    assert ("avx512f" in there) is ("avx512f" in flags)


def test_accuracy_holds_every_graph_and_case(verified: tuple[VerifyResult, list[str]]) -> None:
    result, _ = verified
    content = open_artifact(result.report.parent).content
    for engine in read(result, "accuracy.json")["engines"]:
        found = {(case["graph"], case["case"]): case["outputs"] for case in engine["cases"]}
        assert set(found) == {(case.graph, case.name) for case in content.cases}
        assert {graph for graph, _ in found} == set(content.graphs)
        for case in content.cases:
            outputs = found[case.graph, case.name]
            assert [output["name"] for output in outputs] == [o.name for o in content.graphs[case.graph].outputs]
        for gate in engine["gates"]:
            assert set(gate) == {"name", "value", "limit", "pass", "where", "note"}
            assert gate["pass"] is True


def test_metrics_against_numpy(verified: tuple[VerifyResult, list[str]]) -> None:
    """The numbers in the file are those of the formulas, computed here from the engine's output."""
    result, _ = verified
    artifact = open_artifact(result.report.parent)
    case = next(case for case in artifact.content.cases if case.name == "step_middle")
    golden = Golden(artifact)
    engine = open_engine(artifact, "torchscript", threads=1)
    specs = {spec.name: spec.dtype for spec in artifact.content.graphs["step"].inputs}
    outputs = engine.run("step", {n: engine.put(a, specs[n]) for n, a in golden.inputs(case).items()})
    actual = engine.get(outputs["logits"]).astype(np.float64)
    reference = golden.output(case.outputs["logits"]).astype(np.float64)
    sections = {engine["engine"]: engine for engine in read(result, "accuracy.json")["engines"]}
    found = next(c for c in sections["torchscript"]["cases"] if c["case"] == "step_middle")["outputs"][0]
    error = np.abs(actual - reference)
    centred = reference - reference.mean(-1, keepdims=True)
    judged = actual - actual.mean(-1, keepdims=True) - centred
    expected = {
        "relative_l2": np.sqrt((judged**2).sum() / (centred**2).sum()),
        "max_relative": np.abs(judged).max() / np.abs(centred).max(),
        "raw_mean_relative": (error / np.abs(reference)).mean(),
        "raw_max_relative": (error / np.abs(reference)).max(),
    }
    for name, value in expected.items():
        # Threads and blocking of a matmul may differ between two processes' runs in the last bit.
        assert found["difference"][name] == pytest.approx(value, rel=0.3), name


def test_teacher_forced_logits_are_those_of_one_prefill(verified: tuple[VerifyResult, list[str]]) -> None:
    """Golden logits came token by token; one causal prefill over the same tokens must predict the same ones."""
    result, _ = verified
    artifact = open_artifact(result.report.parent)
    forced, golden = artifact.content.teacher_forced[0], Golden(artifact)
    engine = open_engine(artifact, "onnxruntime", threads=1)
    spoken = forced.tokens[:-1]
    length = next(n for n in (32, 52) if n >= len(spoken))
    tokens = np.full((1, length), artifact.content.settings["eot"], np.int64)
    tokens[0, : len(spoken)] = spoken
    case = next(case for case in artifact.content.cases if case.name == forced.encoder_case)
    cross = {n: golden.output(stored) for n, stored in case.outputs.items() if n.startswith("cross_")}
    rows = np.array([forced.prompt - 1, len(spoken) - 1], np.int64)
    logits = engine.run(f"prefill_{length}", {"tokens": tokens, "rows": rows, **cross})["logits"][0]
    expected = golden.array(forced.logits)
    np.testing.assert_allclose(log_softmax(logits[0]), log_softmax(expected[0]), atol=1e-3)
    np.testing.assert_allclose(log_softmax(logits[1]), log_softmax(expected[-1]), atol=1e-3)


def test_performance_file(verified: tuple[VerifyResult, list[str]]) -> None:
    result, _ = verified
    file = read(result, "performance.json")
    assert {"warm_up", "runs", "threads", "clock", "process"} <= set(file["protocol"])
    assert [engine["engine"] for engine in file["engines"]] == ["onnxruntime", "torchscript"]
    for engine in file["engines"]:
        for latency in engine["graphs"].values():
            assert set(latency["latency_s"]) == {"mean", "std", "min", "p50", "p90", "p95", "p99", "max"}
            assert latency["cold_s"] > 0
        assert engine["end_to_end"]["rtf"] > 0
        assert engine["end_to_end"]["tokens_per_s"] > 0


def test_texts_logs_and_report(verified: tuple[VerifyResult, list[str]]) -> None:
    result, lines = verified
    folder = result.report.parent
    inference = read(result, "inference.json")
    golden = {recording["name"]: recording["result"]["text"] for recording in inference["golden"]}
    assert golden["short_en"]
    for engine in inference["engines"]:
        assert {recording["name"]: recording["result"]["text"] for recording in engine["recordings"]} == golden
    log = (folder / "logs" / "accuracy.log").read_text()
    assert "onnxruntime encoder/speech: relative L2" in log
    assert "torchscript on cpu: pass" in log
    assert "p99" in (folder / "logs" / "performance.log").read_text()
    assert "onnxruntime on cpu: pass, all 14 gates hold" in lines
    page = result.report.read_text()
    assert "Verified on onnxruntime and torchscript" in page
    assert golden["short_en"] in page


def test_nothing_else_is_left(verified: tuple[VerifyResult, list[str]]) -> None:
    result, _ = verified
    folder = result.report.parent
    assert {path.name for path in (folder / "results").iterdir()} == set(FILES)
    assert {path.name for path in (folder / "logs").iterdir()} == {"accuracy.log", "performance.log"}
    open_artifact(folder)  # results lie beside the artifact's own files
    assert logging.getLogger("verify.accuracy").handlers == []


def test_a_part_of_the_cases(pocket_artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pocket_artifact, tmp_path / "fp32"))
    result = verify_artifact(copy, engines=["onnxruntime"], cases=["step_*", "short_en"], runs=0)
    assert result.verdict == "pass"
    accuracy = result.results.accuracy
    assert accuracy.selection == ("step_*", "short_en")
    assert {case.graph for case in accuracy.engines[0].cases} == {"step"}
    assert [recording.name for recording in accuracy.engines[0].recordings] == ["short_en"]
    assert result.results.performance.engines == ()
    page = result.report.read_text()
    assert "Only a part was run:" in page
    assert AccuracyFile.model_validate_json(accuracy.model_dump_json()) == accuracy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engines": ["onnx"]}, "no such engine"),
        ({"engines": ["pt2"]}, "no graphs for it"),
        ({"cases": ["spech"]}, "its cases are .*speech"),
        ({"device": "tpu:0"}, "device 'tpu:0'"),
        ({"device": "cpu,npu"}, "device 'npu'"),
        ({"device": "cpu,"}, "device ''"),
        ({"settings": EngineSettings(capture=True)}, "capture: "),
        ({"runs": -1}, "found -1"),
        ({"controls": True, "cases": ["step_4"]}, "expected all cases"),
    ],
)
def test_bad_usage_writes_nothing(pocket_artifact: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    copy = Path(shutil.copytree(pocket_artifact, tmp_path / "fp32"))
    with pytest.raises(InputError, match=message) as found:
        verify_artifact(copy, **options)
    assert "\n" not in str(found.value)
    assert not list(copy.glob("results/*"))
    assert not (copy / "report.html").exists()


def test_no_device_ends_verify_and_leaves_the_old_results(pocket_artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pocket_artifact, tmp_path / "fp32"))
    verify_artifact(copy, engines=["onnxruntime"], cases=["step_4"], runs=0)
    before = {path: path.read_bytes() for path in (*copy.glob("results/*"), copy / "report.html")}
    with pytest.raises(NoDeviceError, match=r"^npu:0: torch_npu is not installed"):
        verify_artifact(copy, device="npu:0")
    with pytest.raises(NoDeviceError, match=r"^cuda:97: "):
        verify_artifact(copy, device="cuda:97")
    assert NoDeviceError.exit_code == ExitCode.ENVIRONMENT
    assert {path: path.read_bytes() for path in before} == before


def test_an_engine_that_does_not_run_on_the_device_is_blocked(pocket_artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pocket_artifact, tmp_path / "fp32"))
    result = verify_artifact(copy, device="npu:0", engines=["onnxruntime"])
    assert result.verdict == "blocked"
    assert not result
    assert result.exit_code == ExitCode.ENVIRONMENT
    assert "ONNX Runtime runs on cpu and cuda:N" in result.summary
    page = result.report.read_text()
    assert "Not verified: it could not be run; blocked: onnxruntime on npu:0" in page


def test_onnx_graphs_alone_cannot_be_verified_on_an_npu(english_artifact: Path) -> None:
    with pytest.raises(InputError, match="has graphs of onnxruntime, none of an engine that runs on npu:0"):
        verify_artifact(english_artifact, device="npu:0")


@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk needs a file system of its own, which only root can mount")
def test_full_disk_leaves_the_old_results(pocket_artifact: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=32m tmpfs {disk} 2>/dev/null"):
        pytest.skip("may not mount here")
    try:
        copy = Path(shutil.copytree(pocket_artifact, disk / "fp32"))
        verify_artifact(copy, engines=["onnxruntime"], cases=["step_4"], runs=0)
        before = {path: path.read_bytes() for path in (*copy.glob("results/*"), copy / "report.html")}
        (disk / "filler").write_bytes(bytes(_free(disk) - 8192))
        with pytest.raises(EnvironmentNotFitError, match="No space left"):
            verify_artifact(copy, engines=["onnxruntime"], cases=["step_*"], runs=0)
        assert {path: path.read_bytes() for path in before} == before
        assert {path.name for path in (copy / "results").iterdir()} == set(FILES)
    finally:
        os.system(f"umount {disk}")


def _free(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_bsize


def test_results_folder_that_is_a_file(pocket_artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pocket_artifact, tmp_path / "fp32"))
    (copy / "results").write_text("in the way")
    with pytest.raises(EnvironmentNotFitError, match="results") as found:
        verify_artifact(copy)
    assert "\n" not in str(found.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "formats", "engine", "gates"),
    [
        ("fp16", ("torchscript",), "torchscript", 20),
        # Two more ONNX exports, to see ONNX Runtime blocked beside an engine that passes.
        ("bf16", ("onnx", "torchscript"), "torchscript", 19),
    ],
)
def test_lower_precision(tmp_path: Path, variant: str, formats: tuple[str, ...], engine: str, gates: int) -> None:
    from export.pipeline import export_model

    # Short clips: in bf16 the long one's text may change, and is then rightly refused.
    clips = [SAMPLES / "short_en.wav", SAMPLES / "short_de.wav"]
    folder = export_model("whisper-pocket", variant=variant, formats=formats, out=tmp_path, recordings=clips)
    result = verify_artifact(folder, runs=0, threads=1, controls=True)
    assert result.verdict == "pass", result.summary
    sections = {section.engine: section for section in result.results.accuracy.engines}
    assert len(sections[engine].gates) == gates + 1, "and that of the controls"
    assert {gate.name for gate in sections[engine].gates} >= {"structure.relative_l2", "precision.row_l2"}
    assert all(case.precision is (case.graph != "frontend") for case in sections[engine].cases)
    if "onnx" in formats:
        assert sections["onnxruntime"].verdict == "blocked"
        assert "bf16" in sections["onnxruntime"].reason
        assert "blocked: onnxruntime" in result.report.read_text()
