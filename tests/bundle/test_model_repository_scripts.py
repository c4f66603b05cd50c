"""`atlasport publish`: the repository's scripts, and docs/publish.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from repositories import ROOT, publish

from atlasport.model_repository.folder import publish_repository
from runtime.manifest import MANIFEST_NAME

# --- the scripts ------------------------------------------------------------------------------------------------------


def commands(folder: Path) -> list[list[str]]:
    """The scripts' commands of a README, without python itself."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return [line.split()[1:] for line in re.findall(r"^python .*$", text, re.MULTILINE)]


def run(folder: Path, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_inference_runs_as_the_readme_says(published: Path, tmp_path: Path) -> None:
    command = next(command for command in commands(published) if command[0] == "inference.py")
    clip = str(ROOT / "samples" / "sed_1.flac")
    command = [clip if part == "recording.wav" else part for part in command]
    done = run(published, [*command, "--output_json", str(tmp_path / "out.json"), "--dtype", "float32"])
    assert done.returncode == 0, done.stderr
    assert "of 6.0 s of audio" in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    annotated = json.loads((ROOT / "samples" / "samples.json").read_text())["sed_1.flac"]["events"]
    assert [event["label"] for event in found["events"]][:1] == [event["label"] for event in annotated][:1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "npu:0"], "npu:0"),
        pytest.param(
            ["--device", "cpu", "--dtype", "float16"],
            "expected fp32, which the graphs have, found fp16",
            marks=pytest.mark.slow,
        ),
        pytest.param(["--device", "cpu", "--language", "en"], "language", marks=pytest.mark.slow),
    ],
)
def test_a_script_says_in_one_line_what_it_cannot(arguments: list[str], said: str, published: Path) -> None:
    done = run(published, ["inference.py", *arguments])
    assert done.returncode in {2, 3}
    [line] = done.stderr.splitlines()
    assert line.startswith("inference.py: ")
    assert said in line


@pytest.mark.slow
@pytest.mark.parametrize("model", ["verified", "whisper"])
def test_every_script_runs_as_the_readme_says(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = publish(request.getfixturevalue(model), tmp_path / "out")
    clip = str(ROOT / "samples" / ("sed_1.flac" if model == "verified" else "short_en.wav"))
    there = commands(folder)
    assert [command[0] for command in there] == ["inference.py", "eval/eval_accuracy.py", "eval/eval_performance.py"]
    for command in there:
        done = run(folder, [clip if part == "recording.wav" else part for part in command])
        assert done.returncode == 0, done.stderr
    accuracy = json.loads((folder / "accuracy.json").read_text())
    assert accuracy["verdict"] == "pass"
    assert accuracy["content_sha256"] == json.loads((folder / "model" / MANIFEST_NAME).read_text())["content_sha256"]
    performance = json.loads((folder / "performance.json").read_text())
    runs = sorted(performance["runs_s"])
    assert len(runs) == 20
    assert performance["latency_s"]["p50"] == pytest.approx((runs[9] + runs[10]) / 2)
    # Recordings of one's own, on the device and on the CPU.
    done = run(folder, ["eval/eval_accuracy.py", "--device", "cpu", "--audio", clip])
    assert done.returncode == 0, done.stderr
    assert f"{clip}: the same" in done.stdout


@pytest.mark.slow
def test_a_folder_of_its_own_runs_in_a_fresh_environment(verified: Path, tmp_path: Path) -> None:
    """With the wheel of the repository; what it needs of others is borrowed from here."""
    folder = publish_repository(verified, tmp_path / "out").path
    [wheel] = (folder / "wheels").glob("atlasport-*.whl")
    assert (folder / "requirements.txt").read_text().splitlines()[0] == f"./wheels/{wheel.name}"
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, cwd=folder)
    [site] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    told = [python, "-c", "import atlasport; print(atlasport.__file__)"]
    where = subprocess.run(told, capture_output=True, text=True, check=True, cwd=folder).stdout
    assert where.startswith(str(site)), where
    for script in ("inference.py", "eval/eval_accuracy.py"):
        done = subprocess.run(
            [python, script, "--device", "cpu"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


# --- docs/publish.md --------------------------------------------------------------------------------------------------

DOCS = (ROOT / "docs" / "publish.md").read_text(encoding="utf-8")


def test_the_page_says_how_to_call_the_scripts_and_the_command(published: Path) -> None:
    for script, arguments in re.findall(r"^python (\S+) (.*)$", DOCS, re.MULTILINE):
        source = (published / script).read_text(encoding="utf-8")
        for flag in re.findall(r"--\w+", arguments):
            assert f'"{flag}"' in source, (script, flag)
    steps = re.findall(r"^```sh\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)[1].splitlines()
    assert len(steps) == 10
    targets = {step.split()[1] for step in steps if step.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"export", "verify", "doctor", "acceptance", "publish"} == targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    for name in re.findall(r"^\| ((?:model|wheels|results|logs|assets)/)", DOCS, re.MULTILINE):
        assert name == "wheels/" or (published / name).is_dir()


def test_make_says_what_is_missing() -> None:
    done = subprocess.run(
        ["make", "-o", ".venv/.export", "publish", "MODEL=x", "OUT="],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "OUT= is missing; the folder of the repository" in done.stderr
