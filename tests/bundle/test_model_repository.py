"""`atlasport publish`: every number of the READMEs stands in verify's results, and hubs read them."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from repositories import NOT_RUN, ROOT, change_source, edit, publish, table

from atlasport.model_repository import chinese
from export.freeze.licences import SPDX
from runtime.artifact import open_artifact
from runtime.manifest import MANIFEST_NAME
from verify.questions import QUESTIONS

TEMPLATES = ROOT / "atlasport" / "model_repository" / "templates"


# --- numbers ----------------------------------------------------------------------------------------------------------


def as_printed(value: float, scale: float, printed: str) -> bool:
    """Whether a printed number is the value, rounded to the digits that are printed."""
    number = printed.split(maxsplit=1)[0].replace(",", "")
    mantissa = number.partition("e")[0]
    digits = len(mantissa.partition(".")[2])
    unit = 10.0 ** (int(number.partition("e")[2] or 0) - digits)
    # Trailing zeros are dropped, so that 34 ms may be 33.96.
    return abs(value * scale - float(number)) <= max(0.51 * unit, 0.006 * abs(float(number)))


def seconds(value: float, printed: str) -> bool:
    return as_printed(value, {"s": 1.0, "ms": 1e3, "µs": 1e6}[printed.split()[1]], printed)


@pytest.mark.parametrize("model", ["sed", pytest.param("whisper", marks=pytest.mark.slow)])
def test_every_number_of_the_tables_is_one_of_the_results(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    artifact: Path = request.getfixturevalue({"sed": "verified", "whisper": "whisper"}[model])
    out = publish(artifact, tmp_path / "out")
    text = (out / "README.md").read_text(encoding="utf-8")
    accuracy = json.loads((artifact / "results" / "accuracy.json").read_text())
    performance = json.loads((artifact / "results" / "performance.json").read_text())
    engines = {f"{e['engine']}, {e['device']}": e for e in accuracy["engines"]}
    timed = {f"{e['engine']}, {e['device']}": e for e in performance["engines"]}
    check_gates(text, engines)
    check_glance(text, engines, timed)
    check_graphs(text, engines)
    for row in table(text, "operation", "first call"):
        engine, name = timed[row["run on"]], row["operation"].partition(" (")[0]
        end = engine["end_to_end"]
        latency = end["latency"] if name == end["recording"] else engine["graphs"][name]
        assert seconds(latency["cold_s"], row["first call"])
        for percentile in ("p50", "p90", "p99"):
            assert seconds(latency["latency_s"][percentile], row[percentile])
        assert int(row["runs"]) == len(latency["runs_s"])
    for row in table(text, "tokens/s", "load"):
        engine = timed[row["run on"]]
        assert as_printed(engine["end_to_end"]["rtf"], 1, row["RTF"])
        assert as_printed(engine["memory"]["peak"], 1 / 2**20, row["host memory, peak"])
        assert seconds(engine["load_s"], row["load"])
        tokens = engine["end_to_end"]["tokens_per_s"]
        assert row["tokens/s"] == "no tokens" if tokens is None else as_printed(tokens, 1, row["tokens/s"])


def check_gates(text: str, engines: dict[str, Any]) -> None:
    rows = table(text, "gate", "asks")
    for label, engine in engines.items():
        gates = {gate["name"]: gate for gate in engine["gates"]}
        assert {row["gate"] for row in rows if row[label] != "not run"} == set(gates)
        for row in rows:
            value, limit, holds = re.fullmatch(r"(\S+), limit (\S+): (.*)", row[label]).groups()
            assert as_printed(gates[row["gate"]]["value"], 1, value), row
            assert as_printed(gates[row["gate"]]["limit"], 1, limit), row
            assert (holds == "holds") is gates[row["gate"]]["pass"]


def check_glance(text: str, engines: dict[str, Any], timed: dict[str, Any]) -> None:
    rows = {row["run on"]: row for row in table(text, "run on", *engines)}
    for label, engine in engines.items():
        outputs = [output["difference"] for case in engine["cases"] if case["real"] for output in case["outputs"]]
        assert as_printed(max(output["max_abs"] for output in outputs), 1, rows["max_abs_diff"][label])
        assert as_printed(max(output["mean_abs"] for output in outputs), 1, rows["mean_abs_diff"][label])
        assert as_printed(max(output["relative_l2"] for output in outputs), 100, rows["relative L2 error"][label])
        assert as_printed(max(output["mean_relative"] for output in outputs), 100, rows["mean relative error"][label])
        assert as_printed(min(output["cosine"] for output in outputs), 1, rows["cosine_similarity"][label])
        forced = [run for run in engine["teacher_forced"] if run["real"]]
        frames = engine["frame_decisions"]
        total = sum(run["positions"] for run in forced) + sum(run["decisions"] for run in frames)
        wrong = sum(run["positions"] - run["agreed"] for run in forced) + sum(run["flipped"] for run in frames)
        row = rows.get("top-1 match") or rows["decisions as the reference"]
        assert row[label] == f"{total - wrong} of {total}"
        end = timed[label]["end_to_end"]
        assert as_printed(end["latency"]["latency_s"]["p50"], 1e3, rows["latency_ms"][label])
        assert as_printed(end["rtf"], 1, rows["RTF"][label])


def check_graphs(text: str, engines: dict[str, Any]) -> None:
    columns = {"max abs": ("max_abs", 1), "mean abs": ("mean_abs", 1), "max relative": ("max_relative", 100)}
    columns |= {"relative L2": ("relative_l2", 100), "mean relative": ("mean_relative", 100)}
    columns |= {"mean relative, bare denominator": ("raw_mean_relative", 100)}
    rows = table(text, "graph", "cases", "max abs")
    assert rows
    for row in rows:
        cases = [case for case in engines[row["run on"]]["cases"] if case["graph"] == row["graph"]]
        assert int(row["cases"]) == len(cases)
        for column, (metric, scale) in columns.items():
            worst = max(output["difference"][metric] for case in cases for output in case["outputs"])
            assert as_printed(worst, scale, row[column]), (row, column)


def test_what_gates_ask_is_there_in_chinese(published: Path) -> None:
    """Every question, with the numbers and names that it has in English, in the same order."""
    assert list(chinese.QUESTIONS) == list(QUESTIONS)
    assert len(set(chinese.QUESTIONS.values())) == len(QUESTIONS)
    facts = re.compile(r"\d+(?:\.\d+)?|\bfp32\b|float64|logits|L2|KL|F1|NaN|%|ms")
    for name, question in chinese.QUESTIONS.items():
        assert len(re.findall(r"[\u4e00-\u9fff]", question)) >= 8, name
        assert set(facts.findall(question)) == set(facts.findall(QUESTIONS[name].replace("float32", ""))), name
    rows = table((published / "README.zh-CN.md").read_text(encoding="utf-8"), "判据", "含义")
    english = table((published / "README.md").read_text(encoding="utf-8"), "gate", "asks")
    assert [row["判据"] for row in rows] == [row["gate"] for row in english]
    assert [row["含义"] for row in rows] == [chinese.QUESTIONS[row["判据"]] for row in rows]


def numbers(found: object) -> Iterator[float]:
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list):
        yield len(found)
        for item in found:
            yield from numbers(item)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield found


@pytest.mark.parametrize("name", list(NOT_RUN))
def test_a_number_outside_of_the_tables_is_one_too(name: str, published: Path) -> None:
    text = (published / name).read_text(encoding="utf-8").partition("\n---\n")[2]
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    # Tables and lists of versions have tests of their own.
    text = re.sub(r"`[^`\n]*`|\]\([^()\n]*\)|^\|.*$|^- \*\*.*$", "", text, flags=re.MULTILINE)
    results = [json.loads(path.read_text()) for path in (published / "results").glob("*.json")]
    known = {f"{scale * value:.{digits}f}" for value in numbers(results) for scale in (1, 100) for digits in range(4)}
    accuracy = json.loads((published / "results" / "accuracy_eval.json").read_text())
    words = [accuracy["summary"], accuracy["source_parity"]["implementation"], "Apache-2.0", "fp32", "p50", "top-1"]
    for word in (*words, "event-F1", "L2"):
        text = text.replace(word, "")
    found = re.findall(r"(?<![\w.])\d+(?:\.\d+)?", text)
    assert found, "durations and counts are told in sentences"
    assert set(found) <= known


def test_the_templates_hold_no_number() -> None:
    """What is not an expression has no digit but in names of things."""
    names = ("Apache-2.0", "SHA-256", "fp32", "L2", "p50", "p90", "p99", "top-1", "F1", "2.0", "zh-CN")
    for path in TEMPLATES.glob("README.*.md.j2"):
        text = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for name in names:
            text = text.replace(name, "")
        assert not re.findall(r".*\d.*", text), path.name
        # And an expression none but indices, and what ends or begins a list.
        expressions = re.findall(r"\{\{(.*?)\}\}", path.read_text(encoding="utf-8"))
        assert not [e for e in expressions if re.search(r"(?<![\w.\"\[-])\d{2,}|\d\.\d", e.replace("2.0", ""))]


def test_the_results_are_verifys_own_bytes(verified: Path, published: Path) -> None:
    names = {"accuracy": "accuracy_eval", "performance": "performance_eval", "inference": "inference_result"}
    for own_name, name in (names | {"env_info": "env_info"}).items():
        there = (published / "results" / f"{name}.json").read_bytes()
        assert there == (verified / "results" / f"{own_name}.json").read_bytes()
    for name in ("accuracy", "performance"):
        assert (published / "logs" / f"{name}_eval.log").read_bytes() == (
            verified / "logs" / f"{name}.log"
        ).read_bytes()
    for name in ("env_check.log", "inference.log"):
        assert (published / "logs" / name).stat().st_size > 100
    # A whole artifact, of which every hash fits.
    assert open_artifact(published / "model").manifest == open_artifact(verified).manifest


# --- the form ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(NOT_RUN))
def test_model_hubs_read_the_front_matter(name: str, published: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (published / name).read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        card = ModelCard(text, ignore_metadata_errors=False)
    assert not caplog.records
    data = card.data.to_dict()
    assert data["hardware"] == "NPU"
    assert {"NPU", "Ascend", "ascend-npu"} <= set(data["tags"])
    assert data["license"] in SPDX
    assert data["pipeline_tag"] == "audio-classification"
    assert data["library_name"] == "atlasport"
    lines = card.content.split("---\n", 2)[2].splitlines()
    assert "#+NPU" in lines
    first_screen = "\n".join(lines[:12])
    assert NOT_RUN[name] in first_screen


@pytest.mark.slow
def test_the_error_rate_of_the_front_matter_is_that_of_the_recordings(whisper: Path, tmp_path: Path) -> None:
    """Against a count by hand: words that differ, over all words that are spoken."""
    text = (publish(whisper, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text, ignore_metadata_errors=False)
    [result] = card.data.eval_results
    found = json.loads((whisper / "results" / "accuracy.json").read_text())["engines"][0]["recordings"]
    judged = [recording for recording in found if recording["reference"] and not recording["reference"]["not_judged"]]
    wrong = sum(recording["wer"] * recording["reference"]["length"] for recording in judged)
    spoken = sum(recording["reference"]["length"] for recording in judged)
    assert (result.metric_type, result.metric_value) == ("wer", pytest.approx(100 * wrong / spoken, abs=0.1))
    assert sorted(card.data.to_dict()["language"]) == ["de", "en", "es"]
    # The text of every side is there in words.
    rows = table(text, "recording", "run on", "text")
    manifest = json.loads((whisper / MANIFEST_NAME).read_text())["content"]
    for recording in manifest["recordings"]:
        told = {row["run on"]: row["text"] for row in rows if row["recording"] == recording["name"]}
        assert told["reference"] == told["onnxruntime, cpu"] == recording["result"]["text"]
        if spoken := (recording["reference"] or {}).get("text"):
            assert told["what a person says"] == spoken


def test_an_unknown_licence_is_not_invented(own: Path, tmp_path: Path) -> None:
    change_source(own, licence="unknown")
    out = publish(own, tmp_path / "out")
    text = (out / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "unknown"
    assert "**unknown: ask the weights' owner before you pass them on**" in text
    assert "Ask whoever gave them to you" in (out / "LICENSE").read_text()
    assert "unknown: ask the weights' owner" in (out / "NOTICE").read_text()


def test_large_files_go_to_lfs_and_no_line_end_is_changed(published: Path) -> None:
    attributes = (published / ".gitattributes").read_text().splitlines()
    assert "model/** -text" in attributes
    for path in (published / "model").rglob("*"):
        if path.is_file() and path.suffix not in {".json", ".txt"}:
            assert f"*{path.suffix} filter=lfs diff=lfs merge=lfs -text" in attributes


def test_what_people_named_and_said_cannot_break_a_table(own: Path, tmp_path: Path) -> None:
    edit(own / "results" / "inference.json", lambda found: name_event(found, "<b>a|b`c</b>\n# d"))
    text = (publish(own, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    assert "&lt;b>a\\|b\\`c&lt;/b> \\# d" in text
    assert "<b>" not in text


def name_event(found: dict[str, Any], label: str) -> None:
    found["engines"][0]["recordings"][0]["result"]["events"][0]["label"] = label
