"""Artifacts that are exported again while they are opened: what is used was checked, and nothing is called damaged."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

from export.publish import publish
from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError
from runtime.families import family_of, open_recognizer
from runtime.manifest import MANIFEST_NAME, FileEntry, Manifest

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDING = REPOSITORY / "samples" / "sed_1.flac"
# What an export does at its end, with artifacts that are finished, by turns.
EXPORTS = """
import random, shutil, sys, time
from pathlib import Path
from export.publish import publish
target, *finished = map(Path, sys.argv[1:])
print("started", flush=True)
for number in range(10_000):
    folder = target.parent.parent / f".new-{number}"
    shutil.copytree(finished[number % 2], folder)
    publish(folder, target)
    shutil.rmtree(folder)
    time.sleep(random.uniform(0, 0.1))
"""


@pytest.fixture
def two(sed_artifact: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two artifacts that have no file of the graphs, and no manifest, in common."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        shutil.copytree(sed_artifact, folder, ignore=shutil.ignore_patterns("results", "logs", "report.html"))
    manifest = Manifest.from_bytes((second / MANIFEST_NAME).read_bytes(), "second")
    files = dict(manifest.content.files)
    for path in second.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        model.producer_name = "again"
        path.write_bytes(data := model.SerializeToString())
        files[path.name] = FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    content = manifest.content.model_copy(update={"files": files})
    (second / MANIFEST_NAME).write_bytes(Manifest.create(content, manifest.export).to_bytes())
    return first, second


@contextmanager
def exported_again_and_again(target: Path, finished: tuple[Path, Path]) -> Iterator[None]:
    command = [sys.executable, "-c", EXPORTS, target, *finished]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
        finally:
            process.kill()


def test_opened_while_it_is_exported(two: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "artifacts" / "sed-pocket" / "fp32"
    shutil.copytree(two[0], target)
    artifact = open_artifact(target)
    options = family_of(artifact).options.parse({})
    expected = open_recognizer(artifact, "onnxruntime", threads=1).recognize(open_audio(RECORDING), options)
    digests = {open_artifact(path).manifest.content_sha256 for path in two}
    seen = set()
    began = time.monotonic()
    with exported_again_and_again(target, two):
        # Without looking back, one opening in ten failed.
        for opened in range(80):
            artifact = open_artifact(target)
            seen.add(artifact.manifest.content_sha256)
            if opened % 8 == 0:
                recognizer = open_recognizer(artifact, "onnxruntime", threads=1)
                assert recognizer.recognize(open_audio(RECORDING), options).summary == expected.summary
        while len(seen) < 2 and time.monotonic() - began < 60:
            seen.add(open_artifact(target).manifest.content_sha256)
    assert seen == digests


def test_what_is_opened_later_is_not_taken_from_another(two: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "artifacts" / "sed-pocket" / "fp32"
    shutil.copytree(two[0], target)
    artifact = open_artifact(target)
    assert not artifact.is_replaced()
    publish(two[1], target)
    with pytest.raises(EnvironmentNotFitError, match="was replaced"):
        artifact.file("weights.safetensors")
    again = artifact.reopened()
    assert again.file("head.onnx").read_bytes() != (two[1] / "head.onnx").read_bytes()
    # A recogniser is opened with what is there, although it was asked for with what was.
    assert open_recognizer(artifact, "onnxruntime", threads=1) is not None


def test_what_is_damaged_is_still_said(two: tuple[Path, Path]) -> None:
    body = two[0] / "head.onnx"
    body.write_bytes(body.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedArtifactError, match=r"head\.onnx"):
        open_artifact(two[0])
    shutil.rmtree(two[1])
    (two[1]).mkdir()
    (two[1] / MANIFEST_NAME).symlink_to("nowhere")
    with pytest.raises(DamagedArtifactError):
        open_artifact(two[1])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_while_the_command_exports(tmp_path: Path) -> None:
    """The commands themselves, by which this was found."""

    def command(*arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "atlasport", *map(str, arguments)]

    export = command("export", "sed-pocket", "--formats", "onnx", "--out", tmp_path)
    subprocess.run(export, cwd=REPOSITORY, check=True, capture_output=True)
    loop = ["sh", "-c", 'while "$@"; do :; done', "sh", *export]
    with subprocess.Popen(loop, cwd=REPOSITORY, stdout=subprocess.DEVNULL, start_new_session=True) as exporting:
        try:
            for _ in range(14):
                run = command("run", tmp_path / "sed-pocket" / "fp32", RECORDING)
                done = subprocess.run(run, cwd=REPOSITORY, check=False, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
        finally:
            os.killpg(exporting.pid, 9)
