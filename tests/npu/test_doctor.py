"""`atlasport doctor`: a real process on machines with and without an Ascend device, as far as a PATH makes them."""

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
from npu_simulator import reports
from npu_smi_program import printed, printing, write_program

from runtime.device_check import check_device
from runtime.doctor import compiler_findings, diagnose, wheel_findings
from runtime.manifest import Graph, Manifest, TensorSpec
from runtime.needs import artifact_need

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "runtime"))
from toy_artifact import seal  # noqa: E402

FLOATS = 1000


def doctor(*arguments: str | Path, path: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run doctor with only `path` and the system's programs on PATH, and nothing of Ascend in the environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ASCEND", "ACL_", "TORCH_"))}
    programs = f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin"
    return subprocess.run(
        [sys.executable, "-m", "atlasport", "doctor", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**kept, "PATH": programs, "COLUMNS": "120", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def lines_of(process: subprocess.CompletedProcess[str], level: str) -> list[str]:
    """The findings of one level."""
    return [line.removeprefix(level).strip() for line in process.stdout.splitlines() if line.startswith(f"{level} ")]


@pytest.fixture
def root(pocket_artifact: Path, tmp_path: Path) -> Path:
    """whisper-pocket alone: other tests' artifacts lie beside it, some with ONNX graphs only."""
    shutil.copytree(pocket_artifact, tmp_path / "artifacts" / "whisper-pocket" / "fp32")
    return tmp_path / "artifacts"


def toy(folder: Path, formats: tuple[str, ...] = ("torchscript",), variant: str = "fp32") -> Path:
    """An artifact whose manifest only matters: one graph of 1000 floats in, 2000 int64 out; weights of 4096 bytes."""
    folder.mkdir(parents=True)
    files = {"torchscript": "model.ts", "onnx": "step.onnx", "pt2": "step.pt2"}
    for name in formats:
        (folder / files[name]).write_bytes(b"x" * 4096)
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[variant]
    graph = Graph(
        precision="fp32",
        inputs=(TensorSpec(name="x", dtype=dtype, shape=(1, FLOATS)),),
        outputs=(TensorSpec(name="y", dtype="int64", shape=(2, FLOATS)),),
        files={name: files[name] for name in formats},
    )
    seal(folder, {"step": graph}, variant)
    return folder


def test_a_machine_without_ascend_runs_artifacts_on_its_cpu(root: Path) -> None:
    process = doctor("--root", root)
    assert process.returncode == 0, process.stderr
    assert "whisper-pocket/fp32" in process.stdout
    assert process.stdout.splitlines()[-1] == "cpu: fit"
    assert lines_of(process, "problem") == []


def test_a_machine_without_ascend_lacks_an_npu(root: Path) -> None:
    process = doctor("--root", root, "--device", "npu:0")
    assert process.returncode == 3
    problems = "\n".join(lines_of(process, "problem"))
    for missing in ("torch_npu is not installed", "npu-smi", "driver", "/dev/davinci", "CANN"):
        assert missing in problems
    assert process.stdout.splitlines()[-1].startswith("npu:0: not fit")


def test_json_says_the_same(root: Path) -> None:
    process = doctor("--root", root, "--device", "npu:0", "--json")
    assert process.returncode == 3
    told = json.loads(process.stdout)
    assert told["fit"] is False
    assert told["simulated"] is False
    assert told["artifacts"][0]["engines"] == ["torchscript"]
    problems = [finding for finding in told["findings"] if finding["level"] == "problem"]
    assert len(process.stderr.splitlines()) == len(problems)
    assert all(finding["found"] for finding in problems)


def test_no_artifact_is_no_problem(tmp_path: Path) -> None:
    process = doctor("--root", tmp_path)
    assert process.returncode == 0
    assert "no artifact" in process.stdout


@pytest.mark.parametrize("device", ["gpu", "npu", "npu:x", "cpu,", "npu:0;reboot"])
def test_a_device_that_is_none_is_bad_usage(root: Path, device: str) -> None:
    process = doctor("--root", root, "--device", device)
    assert process.returncode == 2
    assert len(process.stderr.splitlines()) == 1
    assert "expected cpu, cuda:N or npu:N" in process.stderr


def test_the_chip_behind_the_device_is_judged(root: Path, tmp_path: Path) -> None:
    path = printing(tmp_path, printed("23.0.7_910B3_warning.txt"))
    fine, warns, critical = (doctor("--root", root, "--device", f"npu:{n}", path=path) for n in range(3))
    assert any("Ascend910B3, health OK, 64.0 GiB" in line for line in lines_of(fine, "ok"))
    assert any("health Warning" in line for line in lines_of(warns, "note"))
    assert any("health Critical" in line and "npu-smi info" in line for line in lines_of(critical, "problem"))
    beyond = doctor("--root", root, "--device", "npu:3", path=path)
    assert any("npu-smi lists 3 chips" in line for line in lines_of(beyond, "problem"))
    hidden = doctor("--root", root, "--device", "npu:0", path=path, ASCEND_RT_VISIBLE_DEVICES="2")
    assert any("health Critical" in line for line in lines_of(hidden, "problem"))


def test_310b_is_told_what_to_do(root: Path, tmp_path: Path) -> None:
    path = printing(tmp_path, printed("23.0.rc3_310B4.txt"))
    problems = "\n".join(lines_of(doctor("--root", root, "--device", "npu:0", path=path), "problem"))
    assert "ATC" in problems


def test_a_broken_npu_smi_is_one_clear_line(root: Path, tmp_path: Path) -> None:
    path = write_program(tmp_path, "echo 'dcmi module initialize failed. ret is -8005'; exit 1")
    process = doctor("--root", root, "--device", "npu:0", path=path)
    assert process.returncode == 3
    assert [line for line in lines_of(process, "problem") if "dcmi module initialize failed" in line]
    assert "Traceback" not in process.stderr


def test_a_toolkit_without_its_environment_is_told_apart_from_none(root: Path, tmp_path: Path) -> None:
    home = tmp_path / "Ascend" / "cann"
    home.mkdir(parents=True)
    (home / "ascend_toolkit_install.info").write_text("version=8.5.1\n")
    unset = doctor("--root", root, "--device", "npu:0", HOME=str(tmp_path))
    assert any(f"source {home}/set_env.sh" in line for line in lines_of(unset, "problem"))
    half = doctor("--root", root, "--device", "npu:0", ASCEND_TOOLKIT_HOME=str(home))
    assert any("ASCEND_OPP_PATH is not set" in line for line in lines_of(half, "problem"))
    variables = {"ASCEND_TOOLKIT_HOME": str(home), "ASCEND_OPP_PATH": str(home / "opp")}
    put = doctor("--root", root, "--device", "npu:0", **variables)
    assert not any(line.startswith("CANN") for line in lines_of(put, "problem"))
    assert "8.5.1" in put.stdout


def test_an_artifact_without_graphs_for_the_device(tmp_path: Path) -> None:
    toy(tmp_path / "toy" / "fp32", formats=("onnx",))
    assert doctor("--root", tmp_path).returncode == 0
    process = doctor("--root", tmp_path, "--device", "npu:0")
    assert any(
        "toy/fp32: no complete set of torchscript or pt2 graphs" in line and "--formats" in line
        for line in lines_of(process, "problem")
    )


def test_bfloat16_on_a_310p(tmp_path: Path) -> None:
    toy(tmp_path / "toy" / "bf16", variant="bf16")
    path = printing(tmp_path / "bin", printed("25.5.1_310P3_duo.txt"))
    process = doctor("--root", tmp_path, "--device", "npu:1", path=path)
    assert any("310P does not compute bfloat16" in line for line in lines_of(process, "problem"))
    path = printing(tmp_path / "bin", printed("25.5.2_910B4.txt"))
    process = doctor("--root", tmp_path, "--device", "npu:0", path=path)
    assert not any("bfloat16" in line for line in lines_of(process, "problem"))


def test_a_damaged_manifest_is_named_and_the_rest_is_judged(tmp_path: Path) -> None:
    toy(tmp_path / "good" / "fp32")
    manifest = toy(tmp_path / "bad" / "fp32") / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"toy"', b'"tov"'))
    process = doctor("--root", tmp_path)
    assert process.returncode == 3
    assert any(line.startswith("bad/fp32") and "SHA-256" in line for line in lines_of(process, "problem"))
    assert "toy/fp32" in process.stdout


def test_memory_need_is_weights_and_the_largest_graph(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy" / "fp32", formats=("torchscript", "onnx"))
    content = Manifest.from_bytes((folder / "manifest.json").read_bytes(), "manifest").content
    need = artifact_need(folder, content, "npu")
    assert need.engines == ("torchscript",)
    assert need.weights_bytes == 4096
    assert need.state_bytes == FLOATS * 4 + 2 * FLOATS * 8
    assert need.shapes == {"step": 1}


def test_a_model_that_does_not_fit_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy(tmp_path / "toy" / "fp32")
    graph = Graph(
        precision="fp32",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(2**20, 300)),),
        outputs=(),
        files={"torchscript": "model.ts"},
    )
    (folder / "manifest.json").unlink()
    seal(folder, {"step": graph})
    small = printed("25.5.2_910B4.txt").replace("2922 / 32768", "22   / 1024 ")
    monkeypatch.setenv("PATH", f"{printing(tmp_path / 'bin', small)}:/usr/bin:/bin")
    found = [f.found for f in diagnose(["npu:0"], [folder]).findings if "at least" in f.found]
    assert found == ["needs at least 1.2 GiB, npu:0 has 1.0 GiB"]
    enough = printed("25.5.2_910B4.txt").replace("2922 / 32768", "22   / 2048 ")
    printing(tmp_path / "bin", enough)
    assert not [f for f in diagnose(["npu:0"], [folder]).findings if "at least" in f.found]


def test_a_symbolic_dimension_is_told(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy" / "fp32")
    graph = Graph(
        precision="fp32",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, "frames")),),
        outputs=(),
        files={"torchscript": "model.ts"},
    )
    (folder / "manifest.json").unlink()
    seal(folder, {"body": graph})
    assert "free: body" in doctor("--root", tmp_path).stdout


@pytest.mark.parametrize(
    ("torch", "torch_npu", "cann", "level", "about"),
    [
        ("2.9.0", "2.9.0.post1", "8.5.1", "ok", "torch_npu"),
        ("2.9.0+cpu", "2.9.0", "8.5.0", "ok", "torch_npu"),
        # Ascend's table of compatible versions has 8.5.X to 9.2.X for each release from 7.3 to 26.2.
        ("2.9.0", "2.9.0.post2", "8.5.1", "note", "CANN"),
        ("2.9.0", "2.9.0", "9.0.0", "note", "CANN"),
        ("2.13.0+cpu", "2.9.0.post1", "8.5.1", "problem", "torch_npu"),
        ("2.13.0", "2.13.0", "9.1.0", "note", "CANN"),
        ("2.13.0", "2.13.0", "9.2.0", "ok", "torch_npu"),
        ("2.9.0", "2.9.0.post4", "9.0.0", "ok", "torch_npu"),
        ("2.9.0", "2.9.0.post9", "9.2.0", "ok", "torch_npu"),
        ("2.12.0", "2.12.0.post3", "9.2.0", "ok", "torch_npu"),
        ("2.99.0", "2.99.0", "9.1.0", "note", "torch_npu"),
        ("2.9.0", "2.9.0.post1", "8.3.RC2", "problem", "CANN"),
    ],
)
def test_wheels_that_belong_together(torch: str, torch_npu: str, cann: str, level: str, about: str) -> None:
    (finding,) = wheel_findings(torch, torch_npu, cann)
    assert (finding.level, finding.about) == (level, about)
    assert torch_npu in finding.found


@pytest.mark.parametrize(
    ("torch_npu", "packages", "needs"),
    [
        ("2.9.0", {"scipy": "1.15.0", "numpy": "1.26.4"}, None),
        ("2.9.0.post1", {"scipy": None, "numpy": "2.3.0"}, "needs scipy, numpy<2"),
        ("2.9.0+git1", {"scipy": None, "numpy": None}, "needs scipy, numpy"),
        ("2.9.0.post2", {"scipy": None, "numpy": "2.3.0"}, None),  # it starts the compiler when there is work for it
    ],
)
def test_packages_of_a_compiler_that_is_started_at_once(
    torch_npu: str, packages: dict[str, str | None], needs: str | None
) -> None:
    found = [finding.found for finding in compiler_findings(torch_npu, packages, "problem")]
    assert len(found) == (needs is not None)
    assert all(text.endswith(str(needs)) for text in found)


def test_a_wheel_that_kills_the_process_is_one_line(root: Path, tmp_path: Path) -> None:
    package = tmp_path / "site" / "torch_npu"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGABRT)\n")
    process = doctor("--root", root, "--device", "npu:0", PYTHONPATH=f"{package.parent}:{REPOSITORY}")
    assert process.returncode == 3
    assert any(line.startswith("npu:0") and "-6" in line for line in lines_of(process, "problem"))


SITE = REPOSITORY / "tests" / "npu_simulator" / "site"


def on_simulated(root: Path, device: str = "npu:0") -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of doctor where torch_npu is the simulated one."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("NPU_SIMULATOR")}
    process = doctor("--root", root, "--device", device, "--json", PYTHONPATH=f"{SITE}:{REPOSITORY}", **kept)
    return process.returncode, json.loads(process.stdout)


def problems_of(told: dict[str, Any]) -> list[str]:
    return [finding["found"] for finding in told["findings"] if finding["level"] == "problem"]


def test_a_simulated_device_fits_and_says_what_it_is(root: Path, lend_npu: Callable[..., Path]) -> None:
    lend_npu(soc="910B4")
    code, told = on_simulated(root)
    assert (code, told["fit"], told["simulated"]) == (0, True, True)
    check = told["checks"]["npu:0"]
    assert check["flags"]["matmul.allow_hf32"] == "false"
    assert check["flags"]["cpu_fallback"] == "forbidden"
    assert check["versions"]["soc"] == "Ascend910B4"
    code, told = on_simulated(root, "npu:0,npu:1")
    assert code == 3
    assert any("sees 1" in found for found in problems_of(told))


def test_the_device_s_own_soc_counts(tmp_path: Path, lend_npu: Callable[..., Path]) -> None:
    """And on a 310P, whose default multiplies float32 in float16, float16 is multiplied to see whether it computes."""
    folder = lend_npu(soc="310P3")
    toy(tmp_path / "root" / "toy" / "fp32")
    code, told = on_simulated(toy(tmp_path / "root" / "toy" / "bf16", variant="bf16").parents[1])
    assert code == 3
    assert problems_of(told) == ["310P does not compute bfloat16", "310P does not compute float32"]
    assert told["checks"]["npu:0"]["problem"] is None
    operators = reports(folder)[0]["operators"]
    [product] = [operators[name] for name in ("aten::matmul", "aten::mm") if name in operators]
    assert product["shapes"] == {"Half[16, 16];Half[16, 16]": 1}


@pytest.mark.parametrize(
    ("control", "why"),
    [
        ({"faults": [{"operators": "aten::(mm|matmul)", "kind": "gain", "amount": 1.5}]}, "gave 24, expected 16"),
        ({"deny": ["aten::(mm|matmul)"]}, "matmul"),
        ({"asynchronous_error": {"operators": "aten::(mm|matmul)", "call": 1, "after": 0}}, "npu:0"),
    ],
)
def test_a_device_that_computes_wrong_or_not_is_a_problem(
    root: Path, lend_npu: Callable[..., Path], control: dict[str, Any], why: str
) -> None:
    lend_npu(control=control)
    code, told = on_simulated(root)
    assert code == 3
    assert why in problems_of(told)[0]
    assert told["checks"]["npu:0"]["problem"] == problems_of(told)[0]


def test_a_driver_that_hangs_does_not_hang_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch_npu"
    package.mkdir()
    (package / "__init__.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPOSITORY}")
    monkeypatch.syspath_prepend(str(tmp_path))
    check = check_device("npu:0", timeout_s=5)
    assert check.problem == "no answer within 5 s; the driver or the device hangs"
