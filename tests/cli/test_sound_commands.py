"""Sound events on the command line: a real process, its two streams, its files and its exit code."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
from command_line import SAMPLES, SHORT, assert_one_line, atlasport

CLIP = SAMPLES / "sed_1.flac"
ANNOTATED = json.loads((SAMPLES / "samples.json").read_text())[CLIP.name]["events"]


@pytest.fixture
def root(sed_artifact: Path) -> Path:
    return sed_artifact.parents[1]


def test_events_are_the_annotated_ones(root: Path) -> None:
    process = atlasport("run", "sed-pocket", CLIP, "--median", "3", "--json", "--root", root)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert [event["label"] for event in found["events"]] == [event["label"] for event in ANNOTATED]
    for event, annotated in zip(found["events"], ANNOTATED, strict=True):
        assert abs(event["onset"] - annotated["onset"]) < 0.2
        assert abs(event["offset"] - annotated["offset"]) < 0.2
    assert {tag["label"] for tag in found["tags"][:4]} == {event["label"] for event in ANNOTATED}
    assert found["resolution_s"] == 0.04
    assert "steps of 40 ms" in process.stderr


def test_every_format_is_written(root: Path, tmp_path: Path) -> None:
    names = "tsv,json,audacity,npz,csv,html"
    process = atlasport("run", "sed-pocket", CLIP, "--format", names, "--out", tmp_path / "out", "--root", root)
    assert process.returncode == 0, process.stderr
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert len(files) == 6, files
    rows = list(csv.DictReader(files["sed_1.tsv"].read_text().splitlines(), delimiter="\t"))
    events = json.loads(files["sed_1.json"].read_text())["events"]
    assert [row["event_label"] for row in rows] == [event["label"] for event in events]
    assert len(list(csv.reader(files["sed_1.csv"].read_text().splitlines()))) > 600
    with np.load(files["sed_1.npz"]) as stored:
        assert any(stored[name].ndim == 2 for name in stored.files)


def test_several_recordings_make_one_list_more(root: Path, tmp_path: Path) -> None:
    out, broken = tmp_path / "out", tmp_path / "broken.wav"
    broken.write_text("no sound")
    clips = [SAMPLES / f"sed_{number}.flac" for number in (1, 2)]
    for _ in range(2):  # the second time over the first one's files
        done = atlasport("run", "sed-pocket", clips[0], broken, clips[1], "--out", out, "--root", root)
        assert done.returncode == 2, done.stderr
    (header, *first), (same, *second) = (
        (out / f"sed_{number}.tsv").read_text().splitlines(keepends=True) for number in (1, 2)
    )
    assert header == same == "filename\tonset\toffset\tevent_label\n"
    assert (out / "events.tsv").read_text() == "".join([header, *first, *second])
    shutil.copy(clips[0], tmp_path / "events.flac")
    process = atlasport("run", "sed-pocket", clips[1], tmp_path / "events.flac", "--out", out, "--root", root)
    assert_one_line(process, 2, "events.tsv is to hold the lines of all recordings")


@pytest.mark.slow
def test_sed_eval_and_dcase_util_read_the_list(root: Path, tmp_path: Path) -> None:
    """In an environment of their own, for they draw in 600 MB; what they count is what a person counts."""
    clips = [SAMPLES / f"sed_{number}.flac" for number in (1, 2)]
    assert atlasport("run", "sed-pocket", *clips, "--out", tmp_path, "--root", root).returncode == 0
    events = {
        clip.name: json.loads(line)["events"]
        for clip, line in zip(
            clips, atlasport("run", "sed-pocket", *clips, "--json", "--root", root).stdout.splitlines(), strict=True
        )
    }
    venv.create(tmp_path / "judge", with_pip=True)
    python = tmp_path / "judge" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-qq", "sed_eval==0.2.1"], check=True, capture_output=True)
    done = subprocess.run(
        [python, "-c", JUDGE, tmp_path / "events.tsv"], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    by_sed_eval, by_dcase_util, metrics = map(json.loads, done.stdout.splitlines()[-3:])
    for read in (by_sed_eval, by_dcase_util):
        assert [(row["filename"], row["event_label"]) for row in read] == [
            (name, event["label"]) for name, found in events.items() for event in found
        ]
        times = [(row["onset"], row["offset"]) for row in read]
        expected = [(event["onset"], event["offset"]) for found in events.values() for event in found]
        np.testing.assert_allclose(times, expected, atol=5.1e-4)
    assert metrics["f_measure"] == 1.0


# Of each file's events against themselves: all are found.
JUDGE = """
import json, sys
import dcase_util, sed_eval
path = sys.argv[1]
read = sed_eval.io.load_event_list(path)
print(json.dumps([dict(row) for row in read]))
print(json.dumps([dict(row) for row in dcase_util.containers.MetaDataContainer().load(path)]))
metrics = sed_eval.sound_event.EventBasedMetrics(read.unique_event_labels, t_collar=0.2)
for name in read.unique_files:
    metrics.evaluate(read.filter(filename=name), read.filter(filename=name))
print(json.dumps(metrics.results_overall_metrics()["f_measure"]))
"""


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--labels", "Sirene"), ("Sirene", "did you mean 'Siren'")),
        (("--high", "0.2", "--low", "0.5"), ("--low: ",)),
        (("--median", "4"), ("--median: ", "odd")),
        (("--thresholds", "none.tsv"), ("none.tsv",)),
        (("--language", "en"), ("--language: ", "has no such option", "--top-k")),
        (("--format", "srt", "--out", "x"), ("--format", "tsv", "'srt'")),
        (("--format", "tsv"), ("--out",)),
    ],
)
def test_bad_options_are_one_line(root: Path, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    assert_one_line(atlasport("run", "sed-pocket", CLIP, *arguments, "--root", root), 2, *parts)


def test_speech_has_no_options_of_sounds(pocket_artifact: Path) -> None:
    process = atlasport("run", "whisper-pocket", SHORT, "--top-k", "3", "--root", pocket_artifact.parents[1])
    assert_one_line(process, 2, "--top-k: ", "has no such option")


def test_verify_passes_and_its_report_shows_the_sounds(sed_artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(sed_artifact, tmp_path / "sed-pocket" / "fp32")
    process = atlasport("verify", "sed-pocket", "--runs", "2", "--root", tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "verdict" in process.stdout
    report = (tmp_path / "sed-pocket" / "fp32" / "report.html").read_text()
    for event in ANNOTATED:
        assert event["label"] in report
