from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.measure import Cost, drawn_orders
from bench.page import DOCS, RESULTS, page_of
from bench.report import Workload, markdown_of, results_of, rows_of, write_results
from bench.whisper import DESIGN, PEERS_PYTHON, Recording, bench, compare, facts_of, recordings_of
from bench.whisper_worker import Job, Outcome
from runtime.artifact import open_artifact
from runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
ORT, TORCH, FLOAT32, INT8 = (
    "atlasport onnxruntime",
    "atlasport torchscript",
    "faster-whisper float32",
    "faster-whisper int8",
)


def outcome(load_s: float, first_text_s: float, peak_bytes: int, texts: Sequence[str]) -> Outcome:
    return Outcome(load_s, load_s / 2, first_text_s, 2.0, 1.0, peak_bytes, tuple(texts), {"torch": "2"})


def test_facts_against_a_hand_calculation() -> None:
    said = [Recording(Path("a.wav"), "One, two three four.", "en"), Recording(Path("b.wav"), "five six", "en")]
    found = [
        outcome(1.0, 3.0, 40, ["", ""]),
        outcome(3.0, 9.0, 30, ["", ""]),
        # One word of another, one left out, one too many: 3 of 6. The mean of the two rates would be 0.625.
        outcome(2.0, 4.0, 10, ["one TWO free", "five, six, seven!"]),
    ]
    facts = facts_of(found, said)
    assert (facts["load_s"], facts["load_cpu_s"], facts["first_text_s"]) == (2.0, 1.0, 4.0)
    assert facts["peak_bytes"] == 40
    assert facts["error_rate"] == pytest.approx(3 / 6)
    assert facts["texts"] == {"a.wav": "one TWO free", "b.wav": "five, six, seven!"}
    # Written without spaces: two of eight characters.
    japanese = [Recording(Path("c.wav"), "今日は晴れです。よ", "ja")]
    assert facts_of([outcome(1, 1, 1, ["今日も晴れですね"])], japanese)["error_rate"] == pytest.approx(2 / 8)


def test_orders_are_drawn_by_a_seed() -> None:
    names = ["a", "b", "c", "d"]
    orders = list(drawn_orders(names, 12))
    assert all(sorted(order) == names for order in orders)
    assert len({tuple(order) for order in orders}) > 6
    assert orders == list(drawn_orders(names, 12))


def test_ratios_and_targets_are_of_cpu_time_and_who_failed_has_a_row(sed_artifact: Path, tmp_path: Path) -> None:
    # CPU and wall disagree about who is fastest.
    seconds = {ORT: (3.0, 9.0), TORCH: (4.0, 1.0), FLOAT32: (4.0, 2.0), INT8: (2.0, 8.0)}
    runs = {name: [{"transcription": Cost(wall, cpu)}] for name, (cpu, wall) in seconds.items()}
    facts = {name: facts_of([outcome(1, 1, 1, ["x"])], [Recording(Path("a"), "x", "en")]) for name in seconds}
    workload = Workload(runs, facts, {"whisper.cpp": "killed by SIGKILL"})
    protocol = {"threads": 2, "runs": 1, "load_1min_before": 0.5}
    results = results_of(open_artifact(sed_artifact), DESIGN, {"recordings of 1 s": workload}, protocol)
    described = results["workloads"]["recordings of 1 s"]
    assert described["fastest_peer"] == INT8
    assert described["contestants"][ORT]["ratio"] == {"cpu_s": 3 / 2, "wall_s": 9 / 8}
    at_any_precision, float32 = described["targets"]
    assert (at_any_precision["engine"], at_any_precision["peer"], at_any_precision["met"]) == (ORT, INT8, False)
    assert (float32["peer"], float32["ratio"]["cpu_s"], float32["met"]) == (FLOAT32, 3 / 4, True)

    assert rows_of(described, DESIGN)[-1][:2] == ["whisper.cpp", "not run"]
    written = write_results(results, DESIGN, tmp_path)
    assert written.name == "sed-pocket-2-threads.json"
    text = written.with_suffix(".md").read_text(encoding="utf-8")
    assert "| whisper.cpp | not run |" in text
    assert "- whisper.cpp did not run: killed by SIGKILL" in text
    assert "load average 0.5 before" in text
    chart = ET.parse(written.with_suffix(".svg")).getroot()
    texts = [element.text for element in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert {"whisper.cpp: not run", *seconds} <= set(texts)


def test_without_a_peer_there_are_no_ratios(sed_artifact: Path) -> None:
    facts = facts_of([outcome(1, 1, 1, ["x"])], [Recording(Path("a"), "x", "en")])
    workload = Workload({ORT: [{"transcription": Cost(1.0, 1.0)}]}, {ORT: facts}, dict.fromkeys(DESIGN.peers, "gone"))
    results = results_of(open_artifact(sed_artifact), DESIGN, {"x": workload}, {"threads": 1, "runs": 1})
    assert [target["met"] for target in results["workloads"]["x"]["targets"]] == [None, None]
    text = markdown_of(results, DESIGN)
    assert f"| {ORT} | 1.00 | 1.00 | - | - |" in text
    assert "the target of 0.75: not run" in text


def job(contestant: str, folder: Path) -> Job:
    return Job(contestant, str(folder / "none"), str(folder / "none"), str(folder / "out"), 1, None, ("none.wav",))


def test_a_process_that_fails_is_told_with_its_last_line_and_the_others_go_on(tmp_path: Path) -> None:
    told = list[str]()
    jobs = {name: job(name, tmp_path) for name in (ORT, "whisper.cpp")}
    outcomes, failures = compare(jobs, 2, tmp_path / "no-python", told.append)
    assert outcomes == {}
    assert failures["whisper.cpp"] == "not installed; make bench-peers"
    assert str(tmp_path / "none") in failures[ORT]
    # Each is told once: who fails is out.
    assert [line for line in told if " failed: " in line] == [
        f"{name} failed: {failures[name]}" for name in ("whisper.cpp", ORT)
    ]
    # A Python without the peer, and one that dies.
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -9 $$\n")
    dying.chmod(0o755)
    for python, expected in ((Path(sys.executable), "No module named 'optimum'"), (dying, "killed by SIGKILL")):
        _, failures = compare({"optimum-onnx": job("optimum-onnx", tmp_path)}, 1, python, told.append)
        assert expected in failures["optimum-onnx"]


def test_recordings_have_people_s_texts_and_one_language() -> None:
    samples = ROOT / "samples"
    found = recordings_of([samples / "jfk.flac", samples / "librivox_austen_0870.wav"])
    assert [one.language for one in found] == ["en", "en"]
    assert found[0].text.startswith("And so, my fellow Americans")
    for names, expected in (
        (("jfk.flac", "short_de.wav"), "expected en, as before it, found de"),
        (("nospeech.wav",), "expected its text"),
        (("no-such.wav",), "no-such.wav"),
    ):
        with pytest.raises(InputError, match=expected):
            recordings_of([samples / name for name in names])


def test_random_weights_hear_nothing_and_are_refused(pocket_artifact: Path) -> None:
    artifact = open_artifact(pocket_artifact)
    source = artifact.content.source.model_copy(update={"weights": "random"})
    content = artifact.content.model_copy(update={"source": source})
    changed = replace(artifact, manifest=artifact.manifest.model_copy(update={"content": content}))
    with pytest.raises(InputError, match="expected trained weights, found random ones"):
        bench(changed, [], 1, threads=1, peers_python=PEERS_PYTHON, progress=print)


def test_the_page_is_written_from_its_results() -> None:
    results = json.loads((DOCS / "benchmarks.json").read_text(encoding="utf-8"))
    assert set(results) <= set(RESULTS)
    page = page_of(results)
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == page
    assert page.count("\n\nnot run\n") == len(RESULTS) - len(results)


@pytest.mark.slow
def test_the_command_transcribes_with_who_is_here_and_tells_who_is_not(pocket_artifact: Path, tmp_path: Path) -> None:
    options = ("--runs", "1", "--peers-python", str(tmp_path / "no-python"), "--out", str(tmp_path))
    command = [sys.executable, "-m", "bench", str(pocket_artifact), "--audio", "samples/long_en.wav", *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "whisper-pocket.json").read_text())
    assert {"cpu", "cpu_flags", "cores", "commit", "load_1min", "versions"} <= set(results["environment"])
    assert {"threads", "device", "load_1min_before", "recordings"} <= set(results["protocol"])
    ((name, workload),) = results["workloads"].items()
    assert name == "recordings of 29 s"
    # faster-whisper is not installed, or pads to windows of 30 s, which are not this model's.
    failed = {"optimum-onnx", "whisper.cpp", FLOAT32, INT8}
    assert set(workload["failures"]) == failed
    assert set(workload["contestants"]) == {ORT, TORCH, "transformers"}
    for contestant in (*workload["contestants"], *failed):
        assert contestant in run.stdout
        assert contestant in (tmp_path / "whisper-pocket.md").read_text()
    for contestant, entry in workload["contestants"].items():
        assert len(entry["runs"]) == 1
        assert 0 < entry["load_s"] < entry["first_text_s"], contestant
        assert entry["peak_bytes"] > 20e6
        assert entry["versions"]
        assert entry["error_rate"] < 0.5
    # The same weights on the same recording.
    assert len({entry["texts"]["long_en.wav"].strip() for entry in workload["contestants"].values()}) == 1
