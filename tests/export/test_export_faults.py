"""Exports that are killed, starved or crowded out: the artifact before stays, and nothing half-made is left."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.pipeline import export_model
from export.publish import check_space, publish, workspace
from export.registry import REPOSITORY_ROOT
from runtime.artifact import artifacts_in, open_artifact
from runtime.errors import EnvironmentNotFitError, ExitCode, InputError

_EXPORT = """
import sys
from pathlib import Path
from export.pipeline import export_model
from runtime.errors import AtlasportError
def progress(stage):
    print(stage, flush=True)
try:
    export_model(sys.argv[1], formats=("onnx",), out=Path(sys.argv[2]), progress=progress)
except AtlasportError as error:
    print(error, flush=True)
    sys.exit(int(error.exit_code))
"""
# Publishes small artifacts without a pause: `version` says which, and its two copies belong together.
_PUBLISH = """
import sys
from pathlib import Path
from export.publish import publish, workspace
target = Path(sys.argv[1])
print("begin", flush=True)
for version in range(100_000):
    with workspace(target) as folder:
        (folder / "a").write_text(str(version))
        (folder / "manifest.json").write_text(str(version))
        publish(folder, target)
"""


def _start(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY_ROOT, env=dict(os.environ)
    )


def _kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def _visible(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize(
    ("stage", "more_s"),
    [
        ("weights", 0.0),
        pytest.param("onnx", 1.0, marks=pytest.mark.slow),
        pytest.param("manifest", 0.02, marks=pytest.mark.slow),
    ],
)
def test_a_killed_export_leaves_the_previous_artifact_and_nothing_else_that_opens(
    stage: str, more_s: float, pocket_artifact: Path, tmp_path: Path
):
    previous = tmp_path / "whisper-pocket" / "fp32"
    shutil.copytree(pocket_artifact, previous)
    before = open_artifact(previous).manifest.to_bytes()
    process = _start(_EXPORT, "whisper-pocket", tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == stage:
            break
    time.sleep(more_s)
    _kill(process)
    # After the last stage the new one may be there already; it is whole then, too.
    after = open_artifact(previous).manifest
    assert stage == "manifest" or after.to_bytes() == before
    assert artifacts_in(tmp_path) == [previous]
    assert _visible(tmp_path) == ["whisper-pocket"]
    # The next export finds what was left and removes it.
    with workspace(previous) as folder:
        assert [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == [folder]


def test_at_every_moment_of_a_replacement_a_whole_artifact_is_there(tmp_path: Path):
    target = tmp_path / "model" / "fp32"
    seconds = random.Random(0)
    for _ in range(12):
        process = _start(_PUBLISH, target)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds.uniform(0.02, 0.3))
        for _ in range(50):
            if target.exists():
                assert {"a", "manifest.json"} <= {path.name for path in target.iterdir()}
        _kill(process)
        if target.exists():
            assert (target / "a").read_text() == (target / "manifest.json").read_text()
    assert (target / "a").exists()
    with workspace(target) as folder:
        assert [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == [folder]


def test_an_artifact_that_was_moved_away_before_the_kill_is_moved_back(tmp_path: Path):
    """Where the system cannot exchange two folders, a kill between the two moves leaves the old one aside."""
    target = tmp_path / "model" / "fp32"
    aside = tmp_path / ".model@fp32@0.old.tmp"
    target.parent.mkdir()
    aside.mkdir()
    (aside / "manifest.json").write_text("old")
    with workspace(target):
        assert (target / "manifest.json").read_text() == "old"
    assert not aside.exists()


def test_two_exports_of_one_artifact_do_not_meet(tmp_path: Path):
    target = tmp_path / "model" / "fp32"
    with workspace(target) as folder:
        with pytest.raises(EnvironmentNotFitError, match="another export writes it now"), workspace(target):
            pass
        assert folder.is_dir()
        with workspace(tmp_path / "model" / "fp16"), workspace(tmp_path / "model-b" / "fp32"):
            pass


def test_a_folder_that_is_no_artifact_is_not_replaced(tmp_path: Path):
    target = tmp_path / "whisper-pocket" / "fp32"
    target.mkdir(parents=True)
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something else than an export"):
        export_model("whisper-pocket", out=tmp_path)
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]


def test_results_of_the_replaced_artifact_go_with_it(tmp_path: Path):
    target = tmp_path / "model" / "fp32"
    for version in ("one", "two"):
        with workspace(target) as folder:
            (folder / "manifest.json").write_text(version)
            publish(folder, target)
        assert [path.name for path in target.iterdir()] == ["manifest.json"]
        (target / "report.html").write_text(version)


def _checked_failure(process: subprocess.Popen[str], out: Path) -> str:
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == ExitCode.ENVIRONMENT, errors
    assert "Traceback" not in errors
    assert [path.name for path in out.iterdir() if path.name.endswith(".tmp")] == []
    return printed.splitlines()[-1]


def test_a_file_that_cannot_grow_ends_in_one_line(tmp_path: Path):
    """As on a full disk: writing fails in the middle of a file (here by a limit on its size)."""
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))"
    process = _start(limited + _EXPORT, "whisper-pocket", tmp_path)
    message = _checked_failure(process, tmp_path)
    assert "cannot be written (File too large); free disk space" in message
    assert _visible(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 120 MB, with whisper-pocket exported to it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full_before_the_export_is_told_first(small_disk: Path):
    (small_disk / "other").write_bytes(bytes(70 * 2**20))
    message = _checked_failure(_start(_EXPORT, "whisper-pocket", small_disk), small_disk)
    assert "GB of free disk, found" in message
    assert _visible(small_disk) == ["other"]


def test_a_disk_that_fills_up_during_the_export_ends_in_one_line(small_disk: Path, pocket_artifact: Path):
    previous = small_disk / "whisper-pocket" / "fp32"
    shutil.copytree(pocket_artifact, previous, ignore=shutil.ignore_patterns("model.ts"))
    before = (previous / "manifest.json").read_bytes()
    process = _start(_EXPORT, "whisper-pocket", small_disk)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "onnx":
            break
    with (small_disk / "other").open("wb", buffering=0) as other:
        try:
            while True:
                other.write(bytes(2**16))
        except OSError:
            pass
    message = _checked_failure(process, small_disk)
    assert "No space left on device" in message
    assert (previous / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("out", ["/proc/atlasport", "/dev/null/artifacts"])
def test_a_place_that_cannot_be_written_ends_in_one_line(out: str):
    with pytest.raises(EnvironmentNotFitError) as caught:
        export_model("whisper-pocket", out=Path(out))
    assert "cannot be written" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_little_space_is_told_with_both_sizes(tmp_path: Path):
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path, free // 2)
    with pytest.raises(EnvironmentNotFitError, match=r"expected \d+\.\d GB of free disk, found \d+\.\d GB"):
        check_space(tmp_path, free * 2)


def test_a_lock_of_a_dead_process_does_not_hold(tmp_path: Path):
    target = tmp_path / "model" / "fp32"
    with workspace(target):
        pass
    (lock,) = tmp_path.glob(".*.lock")
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(EnvironmentNotFitError), workspace(target):
            pass
    with workspace(target):
        pass
