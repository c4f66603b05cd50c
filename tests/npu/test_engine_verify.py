"""`atlasport verify` and `run` on the simulated NPU: exit codes, failures, restarts, two devices, remarks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import atlasport
from npu_smi_program import printed, printing

Lend = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def folder(pocket_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pocket_artifact, tmp_path / "whisper-pocket" / "fp32"))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / "results" / name).read_text())


def test_no_torch_npu_is_exit_3_and_one_line(folder: Path) -> None:
    done = atlasport("verify", folder, "--device", "npu:0")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines() == [
        "atlasport: npu:0: torch_npu is not installed; install it beside CANN, or use cpu"
    ]


@pytest.mark.slow
def test_two_devices_of_which_one_is_missing(folder: Path, lend_npu: Lend) -> None:
    lend_npu(devices=1)
    done = atlasport("verify", folder, "--device", "npu:0,npu:1", "--runs", "0", "--cases", "step_4")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("atlasport: npu:1: expected such a device, torch_npu sees 1")
    assert not list((folder / "results").glob("*.json"))


@pytest.mark.slow
def test_two_devices(folder: Path, lend_npu: Lend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lend_npu(devices=2)
    table = printed("24.1.rc3_910B4_multi.txt")
    monkeypatch.setenv("PATH", f"{printing(tmp_path / 'bin', table)}:{os.environ['PATH']}")
    done = atlasport("verify", folder, "--device", "npu:0,npu:1", "--runs", "2", "--cases", "step_4,short_en")
    assert done.returncode == 0, done.stderr
    for device in ("npu:0", "npu:1"):
        assert f"torchscript, {device}: pass" in done.stdout
        assert f"torchscript on {device}: sets of input shapes: " in done.stdout
    assert "simulated device" in done.stdout
    assert "RTF" not in done.stdout
    for name in ("accuracy.json", "performance.json", "inference.json", "env_info.json"):
        file = read(folder, name)
        assert file["simulated"] is True, name
        assert file["device"] == "npu:0,npu:1"
        assert file["versions"]["soc"] == "Ascend910B4"
        assert file["versions"]["torch_npu"].endswith("+simulated")
        assert file["flags"]["conv.allow_hf32"] == "false"
        assert file["flags"]["cpu_fallback"] == "forbidden"
    assert [engine["device"] for engine in read(folder, "accuracy.json")["engines"]] == ["npu:0", "npu:1"]
    assert all(engine["shapes"]["step"] == 1 for engine in read(folder, "accuracy.json")["engines"])
    for engine in read(folder, "performance.json")["engines"]:
        assert engine["simulated"] is True
        memory = engine["device_memory"]
        assert 0 < memory["allocated"] <= memory["peak"] <= memory["reserved"]
        assert engine["graphs"]["step"]["device_s"]["min"] > 0
    # What the table prints of the first and the second chip, idle and at work.
    told = [engine["power"] for engine in read(folder, "performance.json")["engines"]]
    assert [power["idle_w"] for power in told] == [93.7, 94.3]
    assert [(power["mean_w"], set(power["busy_w"])) for power in told] == [(93.7, {93.7}), (94.3, {94.3})]
    assert "93.7 W idle, 93.7 W at work, by npu-smi" in (folder / "logs" / "performance.log").read_text()
    assert read(folder, "env_info.json")["ascend"]["npu_smi"]["chips"][1]["power_w"] == 94.3
    page = (folder / "report.html").read_text()
    assert "power, idle" not in page, "a simulated device has no times, and no power"
    assert "Simulated device." in page
    listed = atlasport("models", "--json", "--root", folder.parents[1])
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    assert "simulated" in next(row for row in rows if row["name"] == "whisper-pocket")["verified"]["fp32"]


def test_a_device_that_fails_fails_the_verdict(folder: Path, lend_npu: Lend) -> None:
    lend_npu(control={"deny": ["aten::gelu"]})
    done = atlasport("verify", folder, "--device", "npu:0", "--runs", "2", "--restart")
    assert done.returncode == 1
    accuracy = read(folder, "accuracy.json")
    assert accuracy["simulated"] is True
    [engine] = accuracy["engines"]
    assert engine["verdict"] == accuracy["verdict"] == "fail"
    assert engine["restarted"] is True
    assert engine["device_failure"]["operator"] == "aten::gelu"
    assert engine["device_failure"]["graph"] == "encoder"
    assert engine["device_failure"]["case"] in {case.name for case in open_cases(folder)}
    assert engine["cases"] == engine["gates"] == engine["recordings"] == []
    assert read(folder, "inference.json")["engines"][0]["recordings"] == []
    assert read(folder, "performance.json")["engines"] == []
    assert "aten::gelu" in (folder / "report.html").read_text()


def open_cases(folder: Path) -> Any:
    from runtime.artifact import open_artifact

    return open_artifact(folder).content.cases


def test_run_says_that_it_is_simulated(folder: Path, lend_npu: Lend) -> None:
    lend_npu()
    done = atlasport("run", folder, ROOT / "samples" / "short_en.wav", "--device", "npu:0", "--json", "--capture")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert line["simulated"] is True
    assert line["text"] == "set a timer for twenty six minutes"
    assert "simulated: these are not times of the device" in done.stderr


def test_run_with_a_device_that_fails_is_exit_3(folder: Path, lend_npu: Lend) -> None:
    lend_npu(control={"deny": ["aten::gelu"]})
    done = atlasport("run", folder, ROOT / "samples" / "short_en.wav", "--device", "npu:0")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines()[-1].startswith("atlasport: npu:0 failed in graph encoder, operator aten::gelu: ")


@pytest.mark.slow
def test_a_kernel_that_is_wrong_is_named(folder: Path, lend_npu: Lend) -> None:
    """On inputs that are off already, all later kernels are right."""
    lend_npu(control={"faults": [{"operators": "aten::(softmax|_softmax)", "kind": "gain", "amount": 1.01}]})
    options = ("--device", "npu:0", "--engine", "torchscript", "--cases", "step_4", "--runs", "0", "--locate")
    done = atlasport("verify", folder, *options)
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "wrong in" in line]
    assert "step/step_4: wrong in decoder.layers.0.self_attn, Softmax (softmax): relative L2 0.01 there" in line
