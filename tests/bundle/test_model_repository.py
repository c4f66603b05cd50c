"""`atlasport publish`: every number of the READMEs stands in verify's results; what is no evidence is refused."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from atlasport.model_repository.folder import publish_repository
from export.freeze.licences import SPDX
from runtime.artifact import open_artifact
from runtime.errors import AtlasportError
from runtime.manifest import MANIFEST_NAME, Manifest
from verify.run import verify_artifact

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "atlasport" / "model_repository" / "templates"
# A device that was not there: no result of these tests is one of an NPU.
NOT_RUN = {"README.md": "> **Not run on an NPU.**", "README.zh-CN.md": "> **未在 NPU 上运行"}


@pytest.fixture(scope="module")
def whisper(pocket_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """whisper-pocket with verify's results of one engine. Read only."""
    folder = tmp_path_factory.mktemp("verified") / "whisper-pocket" / "fp32"
    shutil.copytree(pocket_artifact, folder, ignore=shutil.ignore_patterns("results", "logs", "report.html"))
    assert verify_artifact(folder, engines=["onnxruntime"], runs=2, threads=1).verdict == "pass"
    return folder


@pytest.fixture(scope="module")
def published(verified: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sed-pocket's repository. Read only."""
    return publish(verified, tmp_path_factory.mktemp("published") / "sed-pocket")


@pytest.fixture
def own(verified: Path, tmp_path: Path) -> Path:
    """A copy of sed-pocket with its results, to be spoilt."""
    return Path(shutil.copytree(verified, tmp_path / "own"))


def publish(artifact: Path, out: Path, **options: Any) -> Path:
    return publish_repository(artifact, out, wheel=False, **options).path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    change(found)
    path.write_text(json.dumps(found), encoding="utf-8")


def edit_all(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    for path in (folder / "results").glob("*.json"):
        edit(path, change)


def change_source(own: Path, **changes: str) -> None:
    """Change what an artifact says of its source, and its results to be of it."""
    manifest = Manifest.from_bytes((own / MANIFEST_NAME).read_bytes(), "")
    source = manifest.content.source.model_copy(update=changes)
    changed = Manifest.create(manifest.content.model_copy(update={"source": source}), manifest.export)
    (own / MANIFEST_NAME).write_bytes(changed.to_bytes())
    edit_all(own, lambda found: found.update(content_sha256=changed.content_sha256))


# --- numbers ----------------------------------------------------------------------------------------------------------


def tables(text: str) -> list[list[list[str]]]:
    """All Markdown tables: rows of cells, without the rule."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("| "):
            found[-1].append([cell.strip().replace("\\", "") for cell in line[1:-1].split(" |")])
        elif not line.startswith("|-") and found[-1]:
            found.append([])
    return [table for table in found if table]


def table(text: str, *headers: str) -> list[dict[str, str]]:
    """The rows of the one table that has these headers, by header."""
    [rows] = [rows for rows in tables(text) if set(headers) <= set(rows[0])]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


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


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "stale": (lambda own: edit_all(own, lambda found: found.update(content_sha256="0" * 64)), "is of the export 00000"),
    "partial": (lambda own: edit_all(own, lambda found: found.update(selection=["sed_1"])), "some cases only"),
    "failed": (
        lambda own: edit(own / "results" / "accuracy.json", lambda found: found.update(verdict="fail")),
        "expected the verdict pass, found fail",
    ),
    "simulated": (lambda own: edit_all(own, lambda found: found.update(simulated=True)), "of a simulated device"),
    "simulated times": (
        lambda own: edit(own / "results" / "performance.json", lambda f: f["engines"][0].update(simulated=True)),
        "of a simulated device",
    ),
    "of two runs": (
        lambda own: edit(own / "results" / "performance.json", lambda found: found.update(created="2020-01-01T00:00")),
        "of different runs",
    ),
    "better than measured": (
        lambda own: edit(own / "results" / "accuracy.json", lambda f: f["engines"][0]["gates"][0].update(value=0.0)),
        "the results were changed",
    ),
    "a device that is a path": (lambda own: edit_all(own, lambda found: found.update(device="../../x")), "'../../x'"),
    "an engine that nobody knows": (
        lambda own: edit(own / "results" / "accuracy.json", lambda f: f["engines"][0].update(engine="<b>")),
        "found '<b>'",
    ),
    "none": (lambda own: shutil.rmtree(own / "results"), "expected results, found none"),
    "half": (lambda own: (own / "results" / "performance.json").unlink(), "expected performance.json, found none"),
    "no result of a recording": (
        lambda own: edit(own / "results" / "inference.json", lambda f: f["golden"][0]["result"].pop("events")),
        "inference.json holds no results of recordings",
    ),
    "no results": (lambda own: (own / "results" / "inference.json").write_text("{}"), "inference.json: model"),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_is_no_evidence_is_refused_and_nothing_written(kind: str, own: Path, tmp_path: Path) -> None:
    spoil, said = REFUSED[kind]
    spoil(own)
    with pytest.raises(AtlasportError, match=re.escape(said)) as refusal:
        publish(own, tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_random_weights_are_refused_by_the_command(own: Path, tmp_path: Path) -> None:
    change_source(own, weights="random")
    command = [sys.executable, "-m", "atlasport", "publish", own, "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("atlasport: ")
    assert "its weights are random" in line
    assert "--allow-random" in line
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_simulated_device_is_in_the_title_and_in_no_time(own: Path, tmp_path: Path) -> None:
    edit_all(own, lambda found: found.update(simulated=True))
    out = publish(own, tmp_path / "out", allow_simulated=True)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "\n# SIMULATED DEVICE: sed-pocket" in text
    chinese = (out / "README.zh-CN.md").read_text(encoding="utf-8")
    assert re.search("^# 模拟设备.*SIMULATED.*sed-pocket", chinese, re.MULTILINE)
    assert NOT_RUN["README.md"] in text
    assert "model-index" not in text
    assert not (out / "assets" / "latency.svg").exists()
    assert "Not measured: a simulated device has no times." in text
    assert not [rows for rows in tables(text) if "first call" in rows[0]]
    rows = {row["run on"]: row for row in table(text, "run on", "torchscript, cpu (simulated)")}
    assert rows["latency_ms"]["torchscript, cpu (simulated)"] == "none: simulated"


def test_random_weights_are_in_the_title(own: Path, tmp_path: Path) -> None:
    change_source(own, weights="random")
    text = (publish(own, tmp_path / "out", allow_random=True) / "README.md").read_text(encoding="utf-8")
    assert "\n# RANDOM WEIGHTS: sed-pocket" in text
    assert "> **The weights are random.**" in text
    assert "model-index" not in text
    rows = {row["run on"]: row for row in table(text, "run on", "onnxruntime, cpu")}
    assert rows["real weights"]["onnxruntime, cpu"] == "no: random"


# --- archives ---------------------------------------------------------------------------------------------------------


def archive_of(artifact: Path, path: Path, *, command: str = "atlasport verify x --device npu:0") -> Path:
    """An archive as acceptance packs it, of an artifact's results."""
    steps = [{"name": "doctor", "command": "atlasport doctor", "results": None}]
    steps += [{"name": "verify x", "command": command, "results": "results/verify_x"}]
    with tarfile.open(path, "w:gz") as tar:
        data = json.dumps({"steps": steps}).encode()
        member = tarfile.TarInfo("acceptance-host/summary.json")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
        for name in ("results", "logs"):
            tar.add(artifact / name, f"acceptance-host/results/verify_x/{name}")
    return path


def without_results(artifact: Path) -> Path:
    for name in ("results", "logs"):
        shutil.rmtree(artifact / name)
    return artifact


def test_a_run_comes_home_in_an_archive(own: Path, verified: Path, tmp_path: Path) -> None:
    archive = archive_of(verified, tmp_path / "a.tar.gz")
    out = publish(without_results(own), tmp_path / "out", archives=[archive])
    assert (out / "results" / "accuracy_eval.json").read_bytes() == (
        verified / "results" / "accuracy.json"
    ).read_bytes()
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    again = publish(own, tmp_path / "again", archives=[tmp_path / "unpacked" / "acceptance-host"])
    assert (again / "README.md").read_bytes() == (out / "README.md").read_bytes()


def test_two_runs_stand_side_by_side(own: Path, verified: Path, tmp_path: Path) -> None:
    """As an NPU's would beside the CPU's; the device's name is changed by hand, so that it calls itself simulated."""

    def on_npu(found: dict[str, Any]) -> None:
        found |= {"device": "npu:0", "simulated": True, "created": "2026-01-01T00:00:00+00:00"}
        for engine in found.get("engines", ()):
            engine["device"] = "npu:0"

    edit_all(own, on_npu)
    archive = archive_of(own, tmp_path / "npu.tar.gz")
    out = publish(verified, tmp_path / "out", archives=[archive], allow_simulated=True)
    assert json.loads((out / "results" / "accuracy_eval.json").read_text())["device"] == "npu:0"
    assert json.loads((out / "results" / "cpu" / "accuracy_eval.json").read_text())["device"] == "cpu"
    text = (out / "README.md").read_text(encoding="utf-8")
    engines = {
        "torchscript, cpu",
        "onnxruntime, cpu",
        "torchscript, npu:0 (simulated)",
        "onnxruntime, npu:0 (simulated)",
    }
    rows = {row["run on"]: row for row in table(text, "run on", *engines)}
    assert rows["latency_ms"]["torchscript, npu:0 (simulated)"] == "none: simulated"
    assert float(rows["latency_ms"]["torchscript, cpu"]) > 0
    assert NOT_RUN["README.md"] in text


@pytest.mark.parametrize("flag", ["--default-precision", "--capture"])
def test_steps_for_comparison_are_no_results(flag: str, own: Path, verified: Path, tmp_path: Path) -> None:
    archive = archive_of(verified, tmp_path / "a.tar.gz", command=f"atlasport verify x {flag}")
    with pytest.raises(AtlasportError, match="found none"):
        publish(without_results(own), tmp_path / "out", archives=[archive])


def test_an_archive_of_another_artifact_is_refused(own: Path, verified: Path, tmp_path: Path) -> None:
    edit_all(own, lambda found: found.update(content_sha256="1" * 64))
    archive = archive_of(own, tmp_path / "a.tar.gz")
    with pytest.raises(AtlasportError, match="found sed-pocket/fp32 111111111111; run"):
        publish(verified, tmp_path / "out", archives=[archive])


@pytest.mark.parametrize("data", [b"", b"no archive", b"\x1f\x8b\x08\x00truncated"])
def test_what_is_no_archive_is_refused(data: bytes, verified: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(data)
    with pytest.raises(AtlasportError, match=re.escape(str(path))) as refusal:
        publish(verified, tmp_path / "out", archives=[path])
    assert "\n" not in str(refusal.value)
    with pytest.raises(AtlasportError, match="cannot be read"):
        publish(verified, tmp_path / "out", archives=[tmp_path / "absent.tar.gz"])


def test_an_archive_does_not_reach_outside(own: Path, verified: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    step = {"name": "verify", "command": "atlasport verify", "results": "../own"}
    (folder / "summary.json").write_text(json.dumps({"steps": [step]}))
    with pytest.raises(AtlasportError, match="is not what `atlasport acceptance` writes"):
        publish(verified, tmp_path / "out", archives=[folder])
    assert own.exists()


# --- an existing folder -----------------------------------------------------------------------------------------------


def test_what_people_wrote_stays(verified: Path, tmp_path: Path) -> None:
    out = publish(verified, tmp_path / "out")
    readme = out / "README.md"
    text = readme.read_text(encoding="utf-8")
    mine = "Our *own* words | and a number: 42\n\n- a list"
    text = text.replace("<!-- yours: introduction -->\n\n", f"<!-- yours: introduction -->\n{mine}\n")
    readme.write_text(text.replace("## Speed", "## Faster than light"), encoding="utf-8")
    (out / "docs").mkdir()
    (out / "docs" / "theirs.md").write_text("kept")
    (out / "results" / "old.json").write_text("gone")
    (out / ".git").mkdir()
    publish(verified, out)
    again = readme.read_text(encoding="utf-8")
    assert f"<!-- yours: introduction -->\n{mine}\n<!-- end of yours -->" in again
    assert "Faster than light" not in again
    assert (out / "docs" / "theirs.md").read_text() == "kept"
    assert (out / ".git").is_dir()
    assert not (out / "results" / "old.json").exists()
    # The other language becomes the first: each keeps its own words.
    publish(verified, out, chinese_first=True)
    assert mine in (out / "README.en.md").read_text(encoding="utf-8")
    assert mine not in readme.read_text(encoding="utf-8")
    assert "\n## 性能\n" in readme.read_text(encoding="utf-8")
    assert not (out / "README.zh-CN.md").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("<!-- end of yours -->", "", 1), "put the marks back"),
        (lambda text: text.replace("yours: end", "yours: afterword"), "found 'afterword'"),
        (lambda text: text.replace("written by atlasport publish", "by hand"), "was not written by"),
        (lambda text: text.replace("sed-pocket", "\udcff"), "expected text in UTF-8"),
    ],
)
def test_words_that_would_be_lost_are_refused(
    change: Callable[[str], str], said: str, published: Path, verified: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(published, tmp_path / "out"))
    readme = out / "README.md"
    readme.write_bytes(change(readme.read_text(encoding="utf-8")).encode(errors="surrogateescape"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(AtlasportError, match=re.escape(said)):
        publish(verified, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_folder_of_something_else_is_left_alone(verified: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(AtlasportError, match=r"found thesis\.tex"):
        publish(verified, tmp_path)
    with pytest.raises(AtlasportError, match="apart from the artifact"):
        publish(verified, verified / "repository")
    with pytest.raises(AtlasportError, match="found a file"):
        publish(verified, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


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
