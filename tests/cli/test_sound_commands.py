"""Sound events on the command line: a real process, its two streams, its files and its exit code."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_commands import SAMPLES, SHORT, assert_one_line, atlasport

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
    assert [row["label"] for row in rows] == [event["label"] for event in events]
    assert len(list(csv.reader(files["sed_1.csv"].read_text().splitlines()))) > 600
    with np.load(files["sed_1.npz"]) as stored:
        assert any(stored[name].ndim == 2 for name in stored.files)


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
