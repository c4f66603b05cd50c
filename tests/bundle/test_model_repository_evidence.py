"""`atlasport publish`: what is no evidence is refused, what people wrote stays."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from repositories import NOT_RUN, ROOT, change_source, edit, edit_all, publish, table, tables

from runtime.errors import AtlasportError

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


def test_power_stands_beside_the_times_where_it_was_read(own: Path, published: Path, tmp_path: Path) -> None:
    """Readings by hand, as an NPU's would stand there."""
    power = {"idle_w": 65.5, "busy_w": [90.0, 91.0, 95.0], "mean_w": 92.0, "max_w": 95.0}
    edit(own / "results" / "performance.json", lambda found: found["engines"][0].update(power=power))
    out = publish(own, tmp_path / "out")
    text = (out / "README.md").read_text(encoding="utf-8")
    [told, other] = table(text, "power at work, mean", "power, idle")
    assert (told["power at work, mean"], told["power, idle"]) == ("92 W of 3 readings", "65.5 W")
    assert (other["power at work, mean"], other["power, idle"]) == ("not told", "not told")
    assert "\n- Several recordings at once, and hours of use: not measured here.\n" in text
    assert "Power is npu-smi's `Power(W)`" in text
    chinese = (out / "README.zh-CN.md").read_text(encoding="utf-8")
    [row] = [line for line in chinese.splitlines() if line.endswith("| 65.5 W |")]
    assert "| 92 W" in row
    assert "\n- Power, several recordings at once" in (published / "README.md").read_text(encoding="utf-8")


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


def test_several_devices_and_several_archives(own: Path, verified: Path, tmp_path: Path) -> None:
    """Two runs on the same two devices, one on a third and the CPU's: eight columns, four sets of results."""

    def run(devices: str, created: str) -> Path:
        folder = Path(shutil.copytree(own, tmp_path / created))

        def on(found: dict[str, Any]) -> None:
            found |= {"device": devices, "simulated": True, "created": f"{created}T00:00:00+00:00"}
            engines = found.pop("engines", [])
            renamed = [{**engine, "device": device} for device in devices.split(",") for engine in engines]
            found |= {"engines": renamed} if engines else {}

        edit_all(folder, on)
        return archive_of(folder, tmp_path / f"{created}.tar.gz")

    archives = [run("npu:0,npu:1", "2026-01-01"), run("npu:0,npu:1", "2026-01-02"), run("npu:3", "2026-01-03")]
    # The same archive given twice is one run.
    out = publish(verified, tmp_path / "out", archives=[*archives, archives[0]], allow_simulated=True)
    found = sorted(str(path.relative_to(out)) for path in out.rglob("accuracy_eval.json"))
    assert [json.loads((out / name).read_text())["created"][:10] for name in found[:1]] == ["2026-01-01"]
    assert found == [
        "results/accuracy_eval.json",
        *(f"results/{name}/accuracy_eval.json" for name in ("cpu", "npu0-npu1-2", "npu3")),
    ]
    text = (out / "README.md").read_text(encoding="utf-8")
    devices = ["npu:0", "npu:1", "npu:0", "npu:1", "npu:3"]
    labels = [f"{engine}, {d} (simulated)" for d in devices for engine in ("onnxruntime", "torchscript")]
    [header] = [rows[0] for rows in tables(text) if rows[0][0] == "run on" and len(rows[0]) > 10]
    assert sorted(header[1:]) == sorted([*labels, "onnxruntime, cpu", "torchscript, cpu"])
    assert "`results/npu0-npu1-2/`" in text


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_other_precisions(precision: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """On the engine that has both: ONNX Runtime's CPU has no bf16."""
    from verify.run import verify_artifact

    exported: Path = request.getfixturevalue(f"sed_{precision}_artifact")
    own = Path(shutil.copytree(exported, tmp_path / "own", ignore=shutil.ignore_patterns("results", "logs")))
    assert verify_artifact(own, engines=["torchscript"], runs=1, threads=1)
    out = publish(own, tmp_path / "out")
    text = (out / "README.md").read_text(encoding="utf-8")
    assert f"\n# sed-pocket, {precision}, for Ascend NPU\n" in text
    accuracy = json.loads((own / "results" / "accuracy.json").read_text())
    gates = [gate["name"] for gate in accuracy["engines"][0]["gates"]]
    assert any(name.startswith("precision.") for name in gates)
    assert [row["gate"] for row in table(text, "gate", "asks")] == gates
    rows = {row["run on"]: row["torchscript, cpu"] for row in table(text, "run on", "torchscript, cpu")}
    assert rows["its limit for ports"] == {"fp16": "1 %", "bf16": "no gate asks"}[precision]
    worst = max(
        output["difference"]["mean_relative"]
        for case in accuracy["engines"][0]["cases"]
        if case["real"]
        for output in case["outputs"]
    )
    assert float(rows["mean relative error"].split()[0]) == pytest.approx(100 * worst, rel=0.01)


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
