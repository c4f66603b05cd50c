"""Freeze believes no verdict that does not follow from the values beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from frozen_bundles import edited

from export.freeze.pipeline import freeze_artifact
from runtime.artifact import open_artifact
from runtime.errors import EnvironmentNotFitError, GateError
from verify.run import verify_artifact

REPOSITORY = Path(__file__).resolve().parents[2]

Change = Callable[[dict[str, Any]], object]
FORGERIES: dict[str, tuple[Change, str]] = {
    "no gates": (lambda engine: engine.update(gates=[]), r"the gate structure\.\w+ is missing"),
    "no cases": (lambda engine: engine.update(cases=[]), r"case .* is missing"),
    "a case less": (lambda engine: engine["cases"].pop(), r"case .* is missing"),
    "an output less": (lambda engine: engine["cases"][0]["outputs"].pop(), "outputs of .* are not those"),
    "a case twice": (lambda engine: engine["cases"].append(engine["cases"][0]), "or twice"),
    "a recording less": (lambda engine: engine["recordings"].pop(), r"recording .* is missing"),
    "no decisions": (lambda engine: engine.update(frame_decisions=[]), r"decision .* is missing"),
    "a failure's values under the old gates": (
        lambda engine: engine["cases"][0]["outputs"][0]["difference"].update(relative_l2=0.5),
        r"the gate structure\.relative_l2 says .* its values 0\.5",
    ),
    "a wider limit": (lambda engine: engine["gates"][0].update(limit=0.5), "says .* of 0.5"),
    "a lower value": (lambda engine: engine["gates"][0].update(value=0.0), "says 0.0 of"),
    "a gate of one's own": (
        lambda engine: engine["gates"].append({**engine["gates"][0], "name": "fine"}),
        "there is no gate fine",
    ),
    "a failure that calls itself a pass": (
        lambda engine: engine["recordings"][0].update(event_f1=0.2),
        r"the gate task\.events says",
    ),
    "scores that are off and of no recording": (
        lambda engine: [run.update(relative_l2=0.5, real=False) for run in engine["frame_decisions"]],
        r"the gate ports\.relative_l2 says .* its values 0\.5",
    ),
    "events that moved": (
        lambda engine: engine["recordings"][0].update(beyond_steps=4.0),
        r"the gate task\.event_times says 0\.0 of 1\.0, its values 4\.0",
    ),
    "events without their scores": (
        lambda engine: engine["recordings"][0].update(scores_error=0.4),
        r"the gate task\.event_scores says .* its values 0\.4",
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_verdict_that_its_values_do_not_make_is_refused(folder: Path, tmp_path: Path, forgery: str):
    change, words = FORGERIES[forgery]
    engines = json.loads((folder / "results" / "accuracy.json").read_bytes())["engines"]
    change(next(engine for engine in engines if engine["engine"] == "onnxruntime"))
    edited(folder, engines=engines)
    with pytest.raises(GateError, match=f"onnxruntime: .*{words}"):
        freeze_artifact(folder, "cpu", "1.0.0", out=tmp_path / "out.atlas")
    assert not (tmp_path / "out.atlas").exists()


def test_some_cases_that_call_themselves_all_are_refused(folder: Path, tmp_path: Path):
    artifact = open_artifact(folder)
    verify_artifact(folder, cases=[artifact.content.cases[0].name], runs=0)
    edited(folder, selection=None)
    with pytest.raises(GateError, match="is missing"):
        freeze_artifact(folder, "cpu", "1.0.0", out=tmp_path / "out.atlas")


def test_the_verdict_before_is_none_of_a_run_that_was_killed(folder: Path, tmp_path: Path):
    command = [sys.executable, "-m", "atlasport", "verify", folder, "--runs", "0"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while (folder / "results" / "accuracy.json").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    with pytest.raises(GateError, match=r"no results/accuracy\.json"):
        freeze_artifact(folder, "cpu", "1.0.0", out=tmp_path / "out.atlas")


def test_a_run_that_gives_up_leaves_the_verdict_before(folder: Path):
    before = (folder / "results" / "accuracy.json").read_bytes()
    with pytest.raises(EnvironmentNotFitError):
        verify_artifact(folder, device="npu:0", runs=0)
    assert (folder / "results" / "accuracy.json").read_bytes() == before
    assert not list((folder / "results").glob(".*"))
