"""The self-test can fail: limits that all keep show as a miss, limits that nothing keeps as a false alarm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from runtime.manifest import MANIFEST_NAME, Content, ExportRecord, Manifest
from self_test.__main__ import main
from self_test.campaign import Campaign
from self_test.known_fault import Scale
from self_test.one_process import weakest
from self_test.plan import MODELS, REPOSITORY, VARIANTS, settings
from self_test.summary import END, START
from verify.results import EngineAccuracy, Gate

VERDICT = REPOSITORY / "docs" / "verdict.json"


def with_limits(artifact: Path, target: Path, limit: float) -> None:
    """Copy an artifact, with the same limit on every metric of fp32."""
    shutil.copytree(artifact, target)
    raw = json.loads((target / MANIFEST_NAME).read_text())
    for rule in raw["content"]["tolerances"]["rules"]["fp32"].values():
        rule.update(constant=limit, k=0)
    content, record = Content.model_validate(raw["content"]), ExportRecord.model_validate(raw["export"])
    (target / MANIFEST_NAME).write_bytes(Manifest.create(content, record).to_bytes())


def self_test(folder: Path, only: str) -> tuple[int, dict[str, Any]]:
    page = folder / "page.md"
    page.write_text(f"before\n{START}\n{END}\nafter\n")
    options = ("--only", only, "--jobs", "1", "--work", folder, "--out", folder / "verdict.json", "--page", page)
    return main([*map(str, options)]), json.loads((folder / "verdict.json").read_text())


def test_a_limit_that_all_keep_is_a_miss(
    sed_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_limits(sed_artifact, Campaign(tmp_path).artifact("sed-pocket", "fp32"), 1e30)
    code, found = self_test(tmp_path, "sed-pocket fp32, symmetric window")
    assert (code, found["counts"]["misses"], found["counts"]["faults"]) == (1, 1, 1)
    [ran] = [fault for fault in found["faults"] if fault["answer"] != "not run"]
    assert ran["answer"] == "pass"
    assert {run["answer"] for run in found["clean"]} == {"not run"}
    # A killed run left half a line: it is dropped, the finished run is not repeated.
    lines = tmp_path / "runs.jsonl"
    whole = lines.read_text()
    lines.write_text(whole + whole[:40])
    capsys.readouterr()
    assert self_test(tmp_path, "sed-pocket fp32, symmetric window")[0] == 1
    assert "0 runs to do, 1 are done" in capsys.readouterr().out
    assert lines.read_text() == whole
    page = (tmp_path / "page.md").read_text()
    assert "- Miss: sed-pocket fp32, symmetric window" in page
    assert (page[:7], page[-6:]) == ("before\n", "after\n")


def test_a_limit_that_nothing_keeps_is_a_false_alarm(sed_artifact: Path, tmp_path: Path) -> None:
    with_limits(sed_artifact, Campaign(tmp_path).artifact("sed-pocket", "fp32"), 1e-300)
    code, found = self_test(tmp_path, "sed-pocket fp32, onnxruntime, 1 threads")
    assert (code, found["counts"]["false_alarms"], found["counts"]["clean_runs"]) == (1, 1, 1)
    assert "- False alarm: sed-pocket fp32" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(("start", "finest"), [(1.0, 1.2), (1e-6, 1.2), (0.02, 1.1), (2.0**-3, 2)])
def test_the_weakest_that_is_caught_is_found(start: float, finest: float) -> None:
    def judge(strength: float) -> EngineAccuracy:
        caught = strength >= 0.013
        gate = Gate.model_validate({"name": "a", "value": strength, "limit": 0.013, "pass": not caught, "where": ""})
        return EngineAccuracy(engine="", device="", verdict="fail" if caught else "pass", reason="", gates=(gate,))

    found = weakest(judge, Scale(start, finest))
    assert 0.013 <= found["first_caught"] <= 0.013 * finest
    assert found["answer"] == "fail"


def test_what_is_never_caught_has_no_strength() -> None:
    never = weakest(lambda _: EngineAccuracy(engine="", device="", verdict="pass", reason=""), Scale(1.0))
    assert (never["first_caught"], never["answer"]) == (None, "pass")


def test_as_much_is_asked_as_the_verdict_promises() -> None:
    """At least 60 correct builds and 60 faults, of every family and kind, and no two runs the same."""
    asked = settings()
    clean, faulty = ([setting for setting in asked if bool(setting.fault) is kind] for kind in (False, True))
    assert len(set(asked)) == len(asked)
    assert min(len(clean), len(faulty)) >= 60
    for model in MODELS:
        assert {s.variant for s in clean if s.model == model.name} == set(VARIANTS)
        ways = {(s.engine, s.threads, s.kernels) for s in clean if (s.model, s.variant) == (model.name, "fp32")}
        assert ways == {
            *(("onnxruntime", threads, "native") for threads in (1, 2)),
            *(("torchscript", threads, kernels) for threads in (1, 2) for kernels in ("native", "avx2")),
        }
        assert any(s.model == model.name for s in faulty)


@pytest.mark.skipif(not VERDICT.exists(), reason="`make verify-self-test` writes docs/verdict.json")
def test_the_last_run_found_no_more_than_is_known() -> None:
    found = json.loads(VERDICT.read_text(encoding="utf-8"))
    assert [run for run in found["clean"] if run["answer"] == "fail"] == []
    missed = {(fault["model"], fault["name"]) for fault in found["faults"] if fault["answer"] in {"pass", "blocked"}}
    assert missed == set()
    assert min(found["counts"]["clean_runs"], found["counts"]["faults"]) >= 60
