"""Parakeet on the command line: a real process, its two streams, its files and its exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import SAMPLES, SHORT, assert_one_line, atlasport

REFERENCE = SAMPLES.parent / "tests" / "parakeet_reference"
ITEMS = json.loads((REFERENCE / "reference.json").read_text())["items"]
FILES = [REFERENCE / f"{name}.wav" for name in ITEMS]


@pytest.fixture
def root(parakeet_artifact: Path) -> Path:
    return parakeet_artifact.parents[1]


def test_a_batch_with_files(root: Path, tmp_path: Path) -> None:
    """Three at a time and the one that is left; results in the order given, times in the subtitles."""
    options = ("--batch", "3", "--json", "--format", "srt,json", "--out", tmp_path, "--root", root)
    process = atlasport("run", "parakeet-pocket", *FILES, *options)
    assert process.returncode == 0, process.stderr
    results = [json.loads(line) for line in process.stdout.splitlines()]
    assert [result["text"] for result in results] == [item["text"] for item in ITEMS.values()]
    assert [Path(result["audio"]["path"]).stem for result in results] == list(ITEMS)
    assert [result["counts"]["calls"] for result in results] == [2, 2, 2, 2]
    assert results[0]["counts"]["audio_s"] == pytest.approx(
        sum(ITEMS[name]["seconds"] for name in ("t1", "t2", "t3")), abs=0.01
    )
    word = results[0]["segments"][0]["words"][-1]
    assert (word["text"], word["start"], word["end"]) == ("green?", 0.64, 0.96)
    assert (tmp_path / "t2.srt").read_text().startswith("1\n00:00:00,080 --> 00:00:00,960\nTurn off the radio.\n")
    assert json.loads((tmp_path / "t4.json").read_text()) == results[3]


def test_a_bad_file_in_a_batch(root: Path, tmp_path: Path) -> None:
    """The others are still recognised, and the exit code tells."""
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    process = atlasport("run", "parakeet-pocket", FILES[0], bad, FILES[1], "--batch", "3", "--root", root)
    assert process.returncode == 2
    assert [line.split(": ", 1)[1] for line in process.stdout.splitlines()] == [
        ITEMS["t1"]["text"],
        ITEMS["t2"]["text"],
    ]
    assert process.stderr.count("bad.wav: expected a recording") == 1


def test_search_on_the_device(root: Path) -> None:
    options = ("--decode", "device", "--decode-steps", "8", "--root", root)
    process = atlasport("run", "parakeet-pocket", FILES[0], "--json", *options)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["text"] == "Is the bird green?"
    assert (result["counts"]["calls"] > 0, result["counts"]["host_calls"]) == (True, 0)


def test_batches_are_not_for_all_families(pocket_artifact: Path) -> None:
    process = atlasport("run", "whisper-pocket", SHORT, "--batch", "2", "--root", pocket_artifact.parents[1])
    assert_one_line(process, 2, "--batch: expected 1, found 2", "whisper")


def test_bad_options_are_one_line(root: Path) -> None:
    for option, value in (("--decode", "gpu"), ("--confidence", "none"), ("--segment-gap", "-1"), ("--top-k", "3")):
        process = atlasport("run", "parakeet-pocket", FILES[0], option, value, "--root", root)
        assert_one_line(process, 2, f"{option}: ")


def test_a_damaged_tokenizer(parakeet_artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parakeet-pocket" / "fp32"
    shutil.copytree(parakeet_artifact, folder)
    (folder / "tokenizer.model").write_bytes(b"x")
    assert_one_line(atlasport("run", "parakeet-pocket", FILES[0], "--root", tmp_path), 4, "tokenizer.model")
