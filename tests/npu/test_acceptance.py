"""The acceptance run: every step's result is kept, a failed step ends nothing, and the archive tells what it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from atlasport.acceptance import TIMED_OUT, Step, StepResult, Summary, _execute, _run, plan
from runtime.artifact import open_artifact
from runtime.engines.base import Array, Value
from runtime.engines.onnxruntime import OnnxRuntimeEngine
from runtime.errors import DeviceFailedError, ExitCode
from verify import soak as soak_module
from verify.soak import Round, SoakJob, judge_rounds, soak

REPOSITORY = Path(__file__).resolve().parents[2]
MIB = 2**20


def acceptance(root: Path, out: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atlasport", "acceptance", "--root", root, "--out", out, "--runs", "0", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def unpacked(out: Path) -> Path:
    """The content of the one archive in `out`, from the archive itself."""
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(out / "unpacked", filter="data")
    (folder,) = (out / "unpacked").iterdir()
    return folder


def summary_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture
def root(pocket_artifact: Path, tmp_path: Path) -> Path:
    shutil.copytree(pocket_artifact, tmp_path / "root" / "whisper-pocket" / "fp32")
    return tmp_path / "root"


def test_a_run_on_the_cpu_from_end_to_end(root: Path, tmp_path: Path) -> None:
    process = acceptance(root, tmp_path / "out", "--device", "cpu", "--minutes", "0")
    assert process.returncode == 0, process.stdout + process.stderr
    folder = unpacked(tmp_path / "out")
    summary = summary_of(folder)
    steps = {step["name"]: step for step in summary["steps"]}
    assert list(steps) == ["doctor", "verify whisper-pocket/fp32", "soak whisper-pocket/fp32 cpu"]
    assert summary["exit_code"] == 0
    assert summary["simulated"] is False
    assert summary["device"] == "cpu"
    for step in steps.values():
        assert step["outcome"] == "pass"
        assert step["simulated"] is False
        assert (folder / step["log"]).is_file()
    verified = folder / steps["verify whisper-pocket/fp32"]["results"]
    accuracy = json.loads((verified / "results" / "accuracy.json").read_text())
    assert accuracy["verdict"] == "pass"
    assert (verified / "report.html").is_file()
    gates = steps["verify whisper-pocket/fp32"]["gates"]
    assert {key.split()[0] for key in gates} == {"onnxruntime", "torchscript"}
    assert gates["onnxruntime on cpu"]["structure.relative_l2"] == accuracy["engines"][0]["gates"][0]["value"]
    soaked = json.loads((folder / steps["soak whisper-pocket/fp32 cpu"]["results"] / "soak.json").read_text())
    assert len(soaked["rounds"]) == 3
    # Neither weights nor golden outputs travel.
    assert not [path for path in folder.rglob("*") if path.suffix in {".ts", ".onnx", ".safetensors"}]


@pytest.mark.slow
def test_a_failed_step_ends_nothing_and_the_exit_code_tells(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "whisper-pocket", root / "damaged")
    weights = root / "damaged" / "fp32" / "model.ts"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    process = acceptance(root, tmp_path / "out", "--device", "cpu", "--minutes", "0")
    assert process.returncode == 4
    summary = summary_of(unpacked(tmp_path / "out"))
    outcomes = {step["name"]: (step["outcome"], step["exit_code"]) for step in summary["steps"]}
    assert outcomes["verify damaged/fp32"] == ("error", 4)
    assert outcomes["soak damaged/fp32 cpu"] == ("error", 4)
    assert outcomes["verify whisper-pocket/fp32"] == ("pass", 0)
    assert outcomes["soak whisper-pocket/fp32 cpu"] == ("pass", 0)
    step = next(step for step in summary["steps"] if step["name"] == "verify damaged/fp32")
    assert "model.ts" in step["reason"]
    assert step["simulated"] is None


def test_without_a_device_nothing_old_is_sent(root: Path, tmp_path: Path) -> None:
    results = root / "whisper-pocket" / "fp32" / "results"
    results.mkdir()
    (results / "accuracy.json").write_text('{"verdict": "pass", "simulated": false, "engines": []}')
    process = acceptance(root, tmp_path / "out", "--device", "npu:0", "--minutes", "0", PATH="/usr/bin:/bin")
    assert process.returncode == 3
    summary = summary_of(unpacked(tmp_path / "out"))
    outcomes = {step["name"]: step["outcome"] for step in summary["steps"]}
    assert set(outcomes.values()) == {"blocked"}
    assert list(outcomes) == [
        "doctor",
        "verify whisper-pocket/fp32 default precision",
        "verify whisper-pocket/fp32 capture",
        "verify whisper-pocket/fp32",
        "soak whisper-pocket/fp32 npu:0",
    ]
    for step in summary["steps"]:
        assert "torch_npu" in step["reason"]
        if step["name"].startswith("verify"):
            assert step["results"] is None
            assert step["simulated"] is None


def test_no_artifact_is_bad_usage(tmp_path: Path) -> None:
    process = acceptance(tmp_path, tmp_path / "out", "--device", "cpu")
    assert process.returncode == 2
    assert "holds no artifact" in process.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_on_the_simulated_npu(root: Path, tmp_path: Path, lend_npu: Callable[..., Path]) -> None:
    lend_npu(soc="910B4")
    site = REPOSITORY / "tests" / "npu_simulator" / "site"
    process = acceptance(
        root, tmp_path / "out", "--device", "npu:0", "--minutes", "0", PYTHONPATH=f"{site}:{REPOSITORY}"
    )
    assert process.returncode == 0, process.stdout + process.stderr
    folder = unpacked(tmp_path / "out")
    summary = summary_of(folder)
    assert summary["simulated"] is True
    steps = {step["name"]: step for step in summary["steps"]}
    assert all(step["simulated"] is True for step in steps.values())
    default = steps.pop("verify whisper-pocket/fp32 default precision")
    assert {step["outcome"] for step in steps.values()} == {"pass"}
    # The default precision computes fp32 in fewer bits: shown, judged, and no fault of the machine.
    assert (default["outcome"], default["counts"]) == ("fail", False)
    key, gate = "torchscript on npu:0", "structure.relative_l2"
    assert default["gates"][key][gate] > 1e-4 > steps["verify whisper-pocket/fp32"]["gates"][key][gate]
    flags = {
        name: json.loads((folder / step["results"] / "results" / "accuracy.json").read_text())["engines"][0]["flags"]
        for name, step in (("default", default), ("set", steps["verify whisper-pocket/fp32"]))
    }
    assert flags["default"]["conv.allow_hf32"] != flags["set"]["conv.allow_hf32"]
    # The artifact's own results are those of the flags as set.
    own = json.loads((root / "whisper-pocket" / "fp32" / "results" / "accuracy.json").read_text())
    assert own["verdict"] == "pass"


def test_the_plan_covers_every_device_and_variant() -> None:
    artifacts = [Path("a/m/fp32"), Path("a/m/fp16")]
    steps = plan("npu:0,npu:1", artifacts, minutes=8, runs=2)
    names = [step.name for step in steps]
    assert len(names) == len(set(names)) == 1 + 2 * 3 + 2 * 2
    assert [step.name for step in steps if not step.counts] == [
        "verify m/fp32 default precision",
        "verify m/fp16 default precision",
    ]
    # The flags as set come last: their results stay in the artifact's folder.
    assert names.index("verify m/fp32") > names.index("verify m/fp32 capture")
    jobs = [SoakJob.model_validate_json(step.command[-1]) for step in steps if step.kind == "soak"]
    assert sum(job.seconds for job in jobs) == 8 * 60
    assert {job.device for job in jobs} == {"npu:0", "npu:1"}


def test_a_step_that_hangs_is_ended(tmp_path: Path) -> None:
    log, errors = tmp_path / "out", tmp_path / "err"
    command = (sys.executable, "-c", "import time; print('started', flush=True); time.sleep(600)")
    assert _execute(command, 3, log, errors) == TIMED_OUT
    assert log.read_text() == "started\n"


def test_a_step_that_crashes_is_an_error(tmp_path: Path) -> None:
    code = "import os, sys; print('half', flush=True); print('last words', file=sys.stderr, flush=True); os.abort()"
    result = _run(Step("crash", "soak", (sys.executable, "-c", code)), tmp_path, 60)
    assert (result.outcome, result.exit_code, result.simulated, result.results) == ("error", -6, None, None)
    assert result.reason == "last words"
    assert summary([result]).exit_code is ExitCode.ENVIRONMENT


def test_capture_may_be_refused_but_nothing_else(tmp_path: Path) -> None:
    refuse = (sys.executable, "-c", "import sys; print('no capture before CANN 9.0', file=sys.stderr); sys.exit(2)")
    refused = _run(Step("capture", "verify", refuse, refusable=True), tmp_path, 60)
    assert (refused.outcome, refused.counts, refused.reason) == ("refused", False, "no capture before CANN 9.0")
    assert summary([refused]).exit_code is ExitCode.OK
    failed = _run(Step("fails", "verify", (sys.executable, "-c", "raise SystemExit(1)"), refusable=True), tmp_path, 60)
    assert summary([failed]).exit_code is ExitCode.GATE_FAILED
    assert summary([_run(Step("verify", "verify", refuse), tmp_path, 60)]).exit_code is ExitCode.BAD_INPUT


def summary(steps: list[StepResult]) -> Summary:
    return Summary(format_version=1, created="", host="", device="npu:0", minutes=0, steps=tuple(steps))


def step_result(code: int, *, counts: bool = True, simulated: bool | None = None) -> StepResult:
    return StepResult("s", "c", code, "pass", counts, simulated, 0.0, "", "l", None, {})


@pytest.mark.parametrize(
    ("codes", "expected"),
    [((), 0), ((0, 0), 0), ((0, 1), 1), ((1, 3), 3), ((0, TIMED_OUT), 3), ((0, 70), 3), ((-9,), 3)],
)
def test_the_exit_code_is_the_worst(codes: tuple[int, ...], expected: int) -> None:
    assert summary([step_result(code) for code in codes]).exit_code == expected
    assert summary([step_result(code, counts=False) for code in codes]).exit_code == 0


def test_one_simulated_step_marks_the_whole() -> None:
    assert summary([step_result(0), step_result(0, simulated=False)]).simulated is False
    assert summary([step_result(0, simulated=True), step_result(0, simulated=False)]).simulated is True
    assert summary([step_result(0)]).simulated is None


def one_round(*, host: int = 0, device: int | None = None, differs: str | None = None) -> Round:
    return Round(seconds=1, verdict="pass", differs=differs, host_bytes=host, device_bytes=device)


def test_rounds_that_are_alike_pass_and_growth_fails() -> None:
    # The first round fills caches.
    assert judge_rounds([one_round(), *[one_round(host=500 * MIB, device=9 * MIB)] * 2])[0] == "pass"
    verdict, reason = judge_rounds([one_round(), one_round(host=10 * MIB), one_round(host=75 * MIB)])
    assert (verdict, "host memory grew" in reason) == ("fail", True)
    verdict, reason = judge_rounds([one_round(device=0), one_round(device=0), one_round(device=2 * MIB)])
    assert (verdict, "device memory grew" in reason) == ("fail", True)
    verdict, reason = judge_rounds([one_round(), one_round(differs="gate x"), one_round()])
    assert (verdict, reason) == ("fail", "round 2 of 3: gate x")


class DriftingEngine(OnnxRuntimeEngine):
    """Computes right in the first round and returns results a tenth too large from the second on."""

    late = False

    def get(self, value: Value) -> Array:
        array = super().get(value)
        return array * np.float32(1.1) if self.late and array.dtype == np.float32 else array


class DyingEngine(OnnxRuntimeEngine):
    """Its device fails in the second round."""

    late = False

    def get(self, value: Value) -> Array:
        if self.late:
            raise DeviceFailedError("npu:0", "the stream is gone", "encoder")
        return super().get(value)


def soak_with(
    engine: DriftingEngine | DyingEngine, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> soak_module.SoakResult:
    monkeypatch.setattr(soak_module, "open_engine", lambda *_: engine)

    def after_a_round(_: str) -> None:
        engine.late = True

    return soak(SoakJob(artifact=artifact, device="cpu", engine=None, seconds=0), after_a_round)


def test_an_engine_that_drifts_fails_the_soak(pocket_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = soak_with(DriftingEngine(open_artifact(pocket_artifact)), pocket_artifact, monkeypatch)
    assert result.verdict == "fail"
    assert result.reason.startswith("round 2 of 3: gate structure.relative_l2")


def test_a_device_that_fails_ends_the_soak_as_blocked(pocket_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = soak_with(DyingEngine(open_artifact(pocket_artifact)), pocket_artifact, monkeypatch)
    assert result.verdict == "blocked"
    assert result.reason.startswith("round 2: npu:0 failed in graph encoder")
    assert len(result.rounds) == 1
