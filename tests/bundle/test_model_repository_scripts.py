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


@pytest.fixture
def index() -> None:
    """A package index; nothing but its absence skips the test."""
    asked = [sys.executable, "-m", "pip", "index", "versions", "jinja2"]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("no package index")


@pytest.mark.slow
@pytest.mark.usefixtures("index")
@pytest.mark.timeout(3600)
def test_the_requirements_are_all_that_the_scripts_need(verified: Path, tmp_path: Path) -> None:
    """In a fresh environment from the package index: a folder of its own, and one beside an installed atlasport."""
    own = publish_repository(verified, tmp_path / "own").path
    [wheel] = (own / "wheels").glob("atlasport-*.whl")
    assert (own / "requirements.txt").read_text().splitlines()[0] == f"./wheels/{wheel.name}"
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    [site] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    beside = publish(verified, tmp_path / "beside")
    assert not (beside / "wheels").exists()
    assert not re.search("^atlasport", (beside / "requirements.txt").read_text(), re.MULTILINE), "no index has it"
    for folder in (own, beside):
        installed = fresh([python, "-m", "pip", "install", "-q", "-r", "requirements.txt"], folder)
        assert installed.returncode == 0, installed.stderr
        told = fresh([python, "-c", "import atlasport; print(atlasport.__file__)"], folder)
        assert told.stdout.startswith(str(site)), told
        for command in commands(folder):
            # The recording of the artifact, and few runs: what is shown is that nothing is missing.
            short = [part for part in command if part not in {"--audio", "recording.wav"}] + ["--num_runs", "1"]
            done = fresh([python, *(short if command[0] != "inference.py" else short[:-2])], folder)
            assert done.returncode == 0, done.stderr
        assert json.loads((folder / "accuracy.json").read_text())["verdict"] == "pass"


def fresh(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run without what the environment says of Python and this checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


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
