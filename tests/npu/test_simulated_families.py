"""Every family on simulated NPUs, from the command line down to the device.

What needs only the engine runs in one process of its own (npu_simulator/checks/check_families.py); here the engine is
in a worker process, as users have it, and errors of the device come out as they would.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from npu_simulator import ROOT, reports, simulated_npu

from runtime.artifact import Artifact, open_artifact
from runtime.audio import open_audio
from runtime.engines import open_engine
from runtime.engines.base import Array, Engine, EngineSettings
from runtime.errors import DeviceFailedError, ExitCode
from runtime.families import family_of
from runtime.results import Transcript
from verify.performance import measure
from verify.run import verify_artifact
from verify.timings import Protocol

CHECKS = ROOT / "tests" / "npu_simulator" / "checks"
SHORT = ROOT / "samples" / "short_en.wav"
OPTIONS = {"language": "en", "temperatures": (0.0,), "max_new_tokens": 12}
# The first test compiles the device where that has not been done.
pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("simulator_library")]
Lend = Callable[..., Path]


def transcribe(path: Path, engine: str, device: str) -> Transcript:
    artifact = open_artifact(path)
    # Graphs are opened as they are called: a .pt2 takes a second.
    opened = open_engine(artifact, engine, device, threads=1)
    family = family_of(artifact)
    try:
        return family.open(artifact, opened, 0.0).recognize(open_audio(SHORT), family.options.parse(OPTIONS))
    finally:
        opened.close()


def encode(artifact: Artifact, engine: Engine) -> Array:
    """Return the encoder's first output for silence."""
    graph = artifact.content.graphs["encoder"]
    outputs = engine.run("encoder", {spec.name: engine.zeros(spec) for spec in graph.inputs})
    return engine.get(outputs[graph.outputs[0].name])


@pytest.mark.parametrize(
    ("family", "artifact"),
    [
        ("whisper", "npu_pocket"),
        pytest.param("whisper", "npu_random", marks=pytest.mark.slow),
        ("sounds", "npu_sed"),
        pytest.param("parakeet", "npu_parakeet", marks=pytest.mark.slow),
        pytest.param("ctc", "npu_ctc", marks=pytest.mark.slow),
        pytest.param("granite", "npu_granite", marks=pytest.mark.slow),
    ],
)
def test_the_families_graphs(family: str, artifact: str, tmp_path: Path, request: pytest.FixtureRequest):
    environment = os.environ | simulated_npu(tmp_path) | {"OMP_NUM_THREADS": "1", "TORCH_NPU_FALLBACK_CPU_DISABLE": "1"}
    environment["PYTHONPATH"] += os.pathsep + str(ROOT / "tests")
    environment["CHECK_ARTIFACT"] = str(request.getfixturevalue(artifact))
    checks = CHECKS / "check_families.py", CHECKS / f"check_{family}.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, checks)]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("engine", ["torchscript", "pt2"])
def test_the_worker_says_what_the_cpu_says(engine: str, npu_pocket: Path, lend_npu: Lend):
    folder = lend_npu()
    found, expected = (transcribe(npu_pocket, engine, device) for device in ("npu:0", "cpu"))
    assert found.simulated
    assert not expected.simulated
    assert [segment.tokens for segment in found.segments] == [segment.tokens for segment in expected.segments]
    assert found.text == expected.text
    assert expected.segments[0].tokens
    assert "torch_npu" not in sys.modules
    [report] = reports(folder)
    assert report["pid"] != os.getpid()
    assert not report["fallbacks"]
    # For the time of the encoder; what ends with a copy to the host has waited.
    assert report["synchronizations"]["device"] == 1
    flags = [event for event in report["events"] if event["name"].endswith("hf32")]
    assert [(flag["value"], flag["operators_before"]) for flag in flags] == [("False", 0)]


@pytest.mark.parametrize(
    ("engine", "control", "said"),
    [
        ("torchscript", {"deny": ["aten::gelu"]}, "'aten::gelu' is not supported on Ascend910B4"),
        ("pt2", {"deny": ["aten::gelu"]}, "'aten::gelu' is not supported on Ascend910B4"),
        ("torchscript", {"without_kernel": ["aten::gelu"]}, "disabled by TORCH_NPU_FALLBACK_CPU_DISABLE=1"),
        # Wheels before that variable only warn, in Python's way or on stderr alone.
        ("torchscript", {"without_kernel": ["aten::gelu"], "ignores_fallback_variable": True}, " on the CPU"),
    ],
    ids=["denied", "denied in pt2", "fallback", "fallback of an older wheel"],
)
def test_an_operator_that_the_device_lacks_fails_by_name(
    engine: str, control: dict[str, Any], said: str, npu_pocket: Path, lend_npu: Lend
):
    lend_npu(control=control)
    artifact = open_artifact(npu_pocket)
    on_npu = open_engine(artifact, engine, "npu:0", threads=1)
    with pytest.raises(DeviceFailedError, match="npu:0 failed in graph encoder, operator aten::gelu: ") as failure:
        encode(artifact, on_npu)
    assert said in str(failure.value)
    assert failure.value.exit_code == ExitCode.ENVIRONMENT
    # What that worker has is of no use any more; this process goes on, on another device.
    with pytest.raises(DeviceFailedError, match="aten::gelu"):
        on_npu.zeros(artifact.content.graphs["encoder"].inputs[0])
    assert encode(artifact, open_engine(artifact, engine, threads=1)).any()


@pytest.mark.parametrize(
    "error",
    [
        {"operators": "aten::convolution", "call": 1},  # in the front end
        {"operators": "aten::gelu", "call": 9},  # in the decoder, heard of at the next copy
        {"operators": "aten::gelu", "call": 9, "after": 3},  # the same, heard of at a later operator
        {"operators": "aten::copy_", "call": 20},  # while a cache row is written
    ],
    ids=["frontend", "decoder", "later operator", "row"],
)
def test_a_delayed_error_never_yields_a_result(error: dict[str, Any], npu_pocket: Path, lend_npu: Lend):
    lend_npu(control={"asynchronous_error": error})
    with pytest.raises(DeviceFailedError, match="aicore exception"):
        transcribe(npu_pocket, "torchscript", "npu:0")


@pytest.mark.parametrize(
    "error",
    [{"operators": "aten::convolution", "call": 2}, {"operators": "aten::tanh", "call": 60}],
    ids=["gates", "recurrence"],
)
def test_a_delayed_error_never_yields_sounds(error: dict[str, Any], npu_sed: Path, lend_npu: Lend):
    lend_npu(control={"asynchronous_error": error})
    artifact = open_artifact(npu_sed)
    engine = open_engine(artifact, "torchscript", "npu:0", threads=1)
    recognizer = family_of(artifact).open(artifact, engine, 0.0)
    with pytest.raises(DeviceFailedError, match="aicore exception"):
        recognizer.recognize(open_audio(ROOT / "samples" / "sed_1.flac"))


def test_sounds_on_the_command_line_say_that_they_were_simulated(npu_sed: Path, tmp_path: Path):
    clip = str(ROOT / "samples" / "sed_1.flac")
    result = atlasport(tmp_path, "run", str(npu_sed), clip, "--device", "npu:0", "--json", "--median", "3")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["simulated"] is True
    assert [event["label"] for event in found["events"]] == [
        *("Silence", "Siren", "Silence", "Click train", "Silence", "Square buzz"),
    ]
    assert "simulated: these are not times of the device" in result.stderr


def test_results_carry_what_a_token_and_a_window_ask_of_the_device(npu_pocket: Path, lend_npu: Lend):
    """One small copy and one wait a token; captured, a step is one launch and those that feed it and keep its rows."""
    lend_npu()
    artifact = open_artifact(npu_pocket)
    protocol = Protocol(warm_up=0, runs=1, budget_s=0.0, threads=1)
    eager, captured = (
        measure(artifact, "torchscript", "npu:0", {"short_en"}, protocol, settings=EngineSettings(capture=capture))
        for capture in (False, True)
    )
    assert (eager.simulated, eager.captured, captured.captured) == (True, False, True)
    assert eager.end_to_end is not None
    assert captured.end_to_end is not None
    token, replayed = eager.end_to_end.per_token, captured.end_to_end.per_token
    window = eager.end_to_end.per_window
    assert token is not None
    assert replayed is not None
    assert window is not None
    assert (token.copies, token.syncs) == (replayed.copies, replayed.syncs) == (1, 1)
    layers = artifact.content.dims["n_text_layer"]
    assert token.launches == token.operators + 2 * layers
    assert replayed.operators == token.operators
    assert replayed.launches < 2 * layers + 6
    assert window.operators > token.operators


@pytest.mark.slow
def test_the_work_of_the_device_by_either_search_is_printed(npu_parakeet: Path, tmp_path: Path):
    """And stands in performance.json and on the report, though times of a stand-in do not."""
    own = Path(shutil.copytree(npu_parakeet, tmp_path / "artifacts" / "parakeet-pocket" / "fp32"))
    options = ("--device", "npu:0", "--engine", "torchscript", "--runs", "1", "--cases", "shortest,short_en_2,search")
    result = atlasport(tmp_path, "verify", str(own), *options)
    assert result.returncode == 0, result.stdout + result.stderr
    [timed] = json.loads((own / "results" / "performance.json").read_text())["engines"]
    host, device = timed["end_to_end"]["work"].values()
    seconds = timed["end_to_end"]["duration_s"]
    assert (host["calls"] * seconds, host["copies"] * seconds) == pytest.approx((2, 3))
    assert 0 < host["operators"] < device["operators"]
    assert host["host_calls"] > 0 == device["host_calls"]
    for search in ("search on the host", "search on the device, 32 steps a call"):
        assert f"torchscript on npu:0, {search}, per second of audio: " in result.stdout
        assert search in (own / "report.html").read_text()
    assert timed["end_to_end"]["per_token"] is None
    # Sound and encoded frames; the third of the above is one number, which goes as an operator's argument.
    assert timed["end_to_end"]["per_window"]["copies"] == pytest.approx(2)
    assert "torchscript on npu:0, per window: " in result.stdout
    assert "What a token and a window ask of the device" in (own / "report.html").read_text()


@pytest.mark.parametrize(
    "error",
    [
        pytest.param({"operators": "aten::glu", "call": 2}, marks=pytest.mark.slow, id="encoder"),
        pytest.param({"operators": "aten::rsqrt", "call": 30}, id="decode"),
    ],
)
def test_a_delayed_error_never_yields_an_answer(error: dict[str, Any], npu_granite: Path, lend_npu: Lend):
    lend_npu(control={"asynchronous_error": error})
    artifact = open_artifact(npu_granite)
    engine = open_engine(artifact, "torchscript", "npu:0", threads=1)
    family = family_of(artifact)
    options = family.options.parse({"max_new_tokens": 8, "repetition_guard": False})
    with pytest.raises(DeviceFailedError, match="aicore exception"):
        family.open(artifact, engine, 0.0).recognize(open_audio(SHORT), options)


@pytest.mark.slow
def test_granite_on_the_command_line_says_that_it_was_simulated(npu_granite: Path, tmp_path: Path):
    """Verify judges the padded path, which the CPU does not take; run prints what it heard."""
    own = Path(shutil.copytree(npu_granite, tmp_path / "artifacts" / "granite-random" / "fp32"))
    result = atlasport(
        tmp_path, "verify", str(own), "--device", "npu:0", "--engine", "torchscript", "--runs", "0", "--controls"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    accuracy = json.loads((own / "results" / "accuracy.json").read_text())
    assert (accuracy["verdict"], accuracy["simulated"]) == ("pass", True)
    assert "simulated" in (own / "report.html").read_text().lower()

    [recording] = [r for r in open_artifact(own).content.recordings if r.name == SHORT.stem]
    options = ("--device", "npu:0", "--json", "--max-new-tokens", "16", "--no-repetition-guard")
    result = atlasport(tmp_path, "run", str(own), str(SHORT), *options)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["simulated"] is True
    assert found["segments"][0]["tokens"] == recording.result["segments"][0]["tokens"][:16]
    assert "simulated: these are not times of the device" in result.stderr


def test_values_of_a_failed_worker_cannot_be_read(npu_pocket: Path, lend_npu: Lend):
    """The device would return stale memory without a word."""
    lend_npu(control={"asynchronous_error": {"operators": "aten::convolution"}})
    artifact = open_artifact(npu_pocket)
    engine = open_engine(artifact, "torchscript", "npu:0", threads=1)
    zeros = engine.zeros(artifact.content.graphs["frontend"].inputs[0])
    before = engine.get(zeros)
    assert not before.any()
    engine.run("frontend", {"audio": zeros})
    for _ in range(2):
        with pytest.raises(DeviceFailedError):
            engine.get(zeros)


def atlasport(folder: Path, *arguments: str, **lent: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | simulated_npu(folder, **lent) | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "atlasport", *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def own_pocket(npu_pocket: Path, tmp_path: Path) -> Path:
    """An artifact to write results into."""
    return Path(shutil.copytree(npu_pocket, tmp_path / "artifacts" / "whisper-pocket" / "fp32"))


def test_every_output_says_that_it_was_simulated(own_pocket: Path, tmp_path: Path):
    """And verify on two devices has a worker on each."""
    devices = ("--device", "npu:0,npu:1", "--engine", "torchscript", "--runs", "0", "--cases", "step_middle,short_en")
    result = atlasport(tmp_path, "verify", str(own_pocket), *devices, devices=2)
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("accuracy", "performance", "inference", "env_info"):
        assert json.loads((own_pocket / "results" / f"{name}.json").read_text())["simulated"] is True, name
    accuracy = json.loads((own_pocket / "results" / "accuracy.json").read_text())
    assert [engine["device"] for engine in accuracy["engines"]] == ["npu:0", "npu:1"]
    assert accuracy["versions"]["torch_npu"] == "2.13.0+simulated"
    assert "simulated" in (own_pocket / "report.html").read_text().lower()
    used = [report["memory"] for report in reports(tmp_path)]
    assert [memory for memory in used if memory[0]["allocations"] and not memory[1]["allocations"]]
    assert [memory for memory in used if memory[1]["allocations"] and not memory[0]["allocations"]]

    result = atlasport(tmp_path, "run", str(own_pocket), str(SHORT), "--device", "npu:0", "--json")
    assert json.loads(result.stdout)["simulated"] is True
    assert "simulated" in atlasport(tmp_path, "models").stdout


def test_a_numeric_fault_fails_the_verdict(own_pocket: Path, tmp_path: Path):
    control = {"faults": [{"operators": "aten::gelu", "kind": "gain", "amount": 1.1}]}
    options = ("--device", "npu:0", "--engine", "torchscript", "--runs", "0", "--cases", "speech")
    result = atlasport(tmp_path, "verify", str(own_pocket), *options, control=control)
    assert result.returncode == ExitCode.GATE_FAILED, result.stdout + result.stderr
    assert json.loads((own_pocket / "results" / "accuracy.json").read_text())["verdict"] == "fail"
    assert reports(tmp_path)[0]["fault_hits"]


def test_a_delayed_error_leaves_nothing_to_judge(own_pocket: Path, lend_npu: Lend):
    """No case before the error counts either."""
    lend_npu(control={"asynchronous_error": {"operators": "aten::gelu", "call": 30}})
    result = verify_artifact(own_pocket, device="npu:0", engines=["torchscript"], runs=0, threads=1)
    assert not result
    [engine] = result.results.accuracy.engines
    assert not engine.cases
    assert not engine.gates
    assert "aten::gelu" in engine.reason
    assert result.results.accuracy.simulated
