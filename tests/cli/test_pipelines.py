"""Standard streams as shells leave them, and names that are no text: real processes, their streams and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDING = REPOSITORY / "samples" / "sed_1.flac"
NAME = b"a\xff\xfe"


def command(*arguments: str | Path | bytes) -> list[str | Path | bytes]:
    return [sys.executable, "-m", "atlasport", *arguments]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "", **more}


def unread(*arguments: str | Path, errors_too: bool = False, **more: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose output nobody reads, as behind `| true`."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            command(*arguments),
            cwd=REPOSITORY,
            env=environment(**more),
            stdout=writer,
            stderr=writer if errors_too else subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize("arguments", [("--help",), ("models",), ("run", "--help")])
def test_an_output_that_nobody_reads_ends_quietly(arguments: tuple[str, ...]) -> None:
    done = unread(*arguments)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_errors_that_nobody_reads_end_quietly(unbuffered: str) -> None:
    for arguments in (("inspect", "/nowhere"), ("nonsense",)):
        assert unread(*arguments, errors_too=True, PYTHONUNBUFFERED=unbuffered).returncode == 141


def test_head_of_a_run(sed_artifact: Path) -> None:
    """The first line is read, and the second recording is not reported as a gate that failed."""
    arguments = command("run", sed_artifact, *[RECORDING] * 3, "--json", "--threads", "1")
    with subprocess.Popen(
        arguments, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["audio"]["path"] == str(RECORDING)
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 141
    assert "atlasport:" not in said
    assert "Traceback" not in said


def run_with(
    before: Callable[[], object], *arguments: str | Path, **options: object
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command(*arguments),
        cwd=REPOSITORY,
        env=environment(),
        preexec_fn=before,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize("arguments", [("--help",), ("models",), ("inspect", "/nowhere")])
def test_a_closed_stdout(arguments: tuple[str, ...]) -> None:
    done = run_with(lambda: os.close(1), *arguments, stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert done.stderr == "atlasport: stdout is closed; send it to a file, or to /dev/null\n"


def test_every_stream_closed() -> None:
    assert run_with(lambda: os.closerange(0, 3), "models").returncode == 3


def test_a_closed_stderr_or_stdin_changes_nothing() -> None:
    whole = run_with(lambda: None, "models", stdout=subprocess.PIPE)
    for number in (0, 2):
        done = run_with(lambda number=number: os.close(number), "models", stdout=subprocess.PIPE)  # type: ignore[misc]
        assert (done.returncode, done.stdout) == (0, whole.stdout)
    assert run_with(lambda: os.close(2), "inspect", "/nowhere", stdout=subprocess.PIPE).returncode == 2


@pytest.mark.parametrize("arguments", [("--help",), ("models",)])
def test_a_full_disk_behind_stdout(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run_with(lambda: None, *arguments, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("atlasport: no space left on device")


# --- names that are no UTF-8 ------------------------------------------------------------------------------------------
@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / os.fsdecode(NAME + b".flac")
    shutil.copyfile(RECORDING, path)
    return path


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict", ""])
def test_a_recording_whose_name_is_no_text(recording: Path, sed_artifact: Path, tmp_path: Path, encoding: str) -> None:
    formats = ("--format", "json,tsv,html", "--out", tmp_path / "out")
    done = subprocess.run(
        command("run", sed_artifact, recording, "--json", "--threads", "1", *formats),
        cwd=REPOSITORY,
        env=environment(PYTHONIOENCODING=encoding, LC_ALL="C"),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.decode())
    assert result["audio"]["path"] == f"{tmp_path}/a\\udcff\\udcfe.flac"
    written = sorted(os.fsencode(path.name) for path in (tmp_path / "out").iterdir())
    assert written == [NAME + suffix for suffix in (b".html", b".json", b".tsv")]
    assert json.loads((tmp_path / "out" / f"{recording.stem}.json").read_bytes()) == result


def test_names_that_are_no_text_and_nothing_there(sed_artifact: Path, tmp_path: Path) -> None:
    missing = os.fsencode(tmp_path) + b"/" + NAME
    folder = tmp_path / os.fsdecode(NAME)
    shutil.copytree(sed_artifact, folder)
    for arguments in (
        ("run", sed_artifact, missing),
        ("run", missing + b"x", RECORDING),
        ("run", folder, RECORDING),
        ("inspect", missing + b"x"),
        ("export", "sed-pocket", "--weights", missing + b"x"),
        ("pull", b"host/" + NAME + b":1"),
    ):
        done = subprocess.run(
            command(*arguments),
            cwd=REPOSITORY,
            env=environment(PYTHONIOENCODING="utf-8:strict"),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith("atlasport: ")
