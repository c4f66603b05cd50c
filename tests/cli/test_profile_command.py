"""`atlasport run --profile`: a trace, a table, and refusals before any work."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from command_line import SHORT, assert_one_line, atlasport

from atlasport.commands.profile import TraceFile
from runtime.errors import AtlasportError, EnvironmentNotFitError, InputError


@pytest.mark.parametrize("engine", ["onnxruntime", "torchscript"])
def test_every_token_is_a_step_of_the_trace(pocket_artifact: Path, tmp_path: Path, engine: str):
    trace = tmp_path / "trace.json"
    started = time.perf_counter()
    process = atlasport("run", pocket_artifact, SHORT, "--engine", engine, "--json", "--profile", trace)
    wall_us = (time.perf_counter() - started) * 1e6
    assert process.returncode == 0, process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    events = json.loads(trace.read_text())["traceEvents"]
    calls = [event for event in events if event.get("cat") == "user_annotation"]
    counts = Counter(event["name"] for event in calls)
    tokens = sum(len(segment["tokens"]) for segment in json.loads(process.stdout)["segments"])
    # The prompt's pass gives the first token, each step the one after, the last of which is the end of the text. The
    # language takes a pass of its own.
    assert counts == {"frontend": 1, "encoder": 1, "prefill_4": 2, "step": tokens}
    assert sum(event["dur"] for event in calls) <= wall_us
    rows = [line.split() for line in process.stderr.splitlines()]
    assert ["step", str(tokens)] in [row[:2] for row in rows]
    assert str(trace) in process.stderr


@pytest.mark.parametrize(
    ("place", "error", "reason"),
    [
        ("missing/trace.json", InputError, "expected a folder"),
        ("trace.wav", InputError, "expected a name that ends in .json"),
        ("folder.json", InputError, "expected a file or nothing there"),
        ("/proc/trace.json", EnvironmentNotFitError, "expected a folder that can be written"),
    ],
)
def test_places_that_cannot_be_written(tmp_path: Path, place: str, error: type[AtlasportError], reason: str):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(error, match=f"^--profile .*{place}: {reason}"):
        TraceFile(tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


def test_a_place_that_cannot_be_written_is_refused_first(tmp_path: Path):
    # Not even the artifact is looked for.
    process = atlasport("run", "no-such-model", SHORT, "--profile", tmp_path / "missing" / "trace.json")
    assert_one_line(process, 2, "--profile", "expected a folder")


def test_a_run_that_fails_leaves_no_trace(pocket_artifact: Path, tmp_path: Path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    options = ("--engine", "torchscript", "--profile", tmp_path / "trace.json")
    assert_one_line(atlasport("run", pocket_artifact, bad, *options), 2, "bad.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.wav"]
