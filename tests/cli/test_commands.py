"""What every command does: streams, exit codes, one line for an error, results on stdout."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jiwer
import pytest
from command_line import REPOSITORY, SAMPLES, SHORT, assert_one_line, atlasport

from runtime.manifest import Manifest


@pytest.fixture
def root(pocket_artifact: Path) -> Path:
    return pocket_artifact.parents[1]


@pytest.fixture
def own_root(pocket_artifact: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(pocket_artifact, tmp_path / "whisper-pocket" / "fp32")
    return tmp_path


@pytest.mark.parametrize("command", [(), ("export",), ("run",), ("verify",), ("models",), ("doctor",), ("acceptance",)])
@pytest.mark.parametrize("columns", [40, 100])
def test_help_fits_the_terminal(command: tuple[str, ...], columns: int) -> None:
    process = atlasport(*command, "--help", COLUMNS=str(columns))
    assert process.returncode == 0
    assert max(map(len, process.stdout.splitlines())) <= columns


def test_help_imports_no_engine() -> None:
    code = "import sys, atlasport.cli; print([m for m in ('torch', 'onnxruntime', 'transformers') if m in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert process.stdout.strip() == "[]"


def test_unknown_option_is_bad_usage() -> None:
    process = atlasport("run", "--nonsense")
    assert process.returncode == 2
    assert "Traceback" not in process.stderr


def test_unknown_model_names_the_near_one(tmp_path: Path) -> None:
    assert_one_line(atlasport("export", "whisper-tinny", "--out", tmp_path), 2, "whisper-tinny", "whisper-tiny")
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback() -> None:
    process = atlasport("export", "whisper-tinny", "--debug")
    assert process.returncode != 0
    assert "Traceback" in process.stderr


def test_unknown_artifact_lists_what_is_there(root: Path) -> None:
    process = atlasport("run", "whisper-poket", SHORT, "--root", root)
    assert_one_line(process, 2, "whisper-poket", "whisper-pocket")


def test_run_prints_text_alone_on_stdout(root: Path) -> None:
    process = atlasport("run", "whisper-pocket", SHORT, "--root", root)
    assert process.returncode == 0
    assert process.stdout == "set a timer for twenty six minutes\n"
    assert "RTF" in process.stderr


def test_a_recording_that_cannot_be_read_among_several(root: Path, tmp_path: Path) -> None:
    """The others are heard, and the exit code tells at the end."""
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF no audio")
    files = (bad, SHORT, tmp_path / "missing.wav", tmp_path, SAMPLES / "short_de.wav")
    process = atlasport("run", "whisper-pocket", *files, "--json", "--root", root)
    assert process.returncode == 2
    texts = [json.loads(line)["text"] for line in process.stdout.splitlines()]
    assert texts == ["set a timer for twenty six minutes", "drei null sechs vier"]
    assert process.stderr.count(": expected a recording, found") == 3
    assert "Traceback" not in process.stderr


def test_speed_is_of_the_clip(root: Path) -> None:
    process = atlasport("run", "whisper-pocket", SAMPLES / "long_en.wav", "--clip", "2,5", "--root", root)
    assert process.stderr.lstrip().startswith("3.0 s of audio in ")


def test_run_json_has_the_documented_fields(root: Path) -> None:
    files = [SHORT, SAMPLES / "short_de.wav"]
    process = atlasport("run", "whisper-pocket", *files, "--json", "--timestamps", "--root", root)
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert [line["text"] for line in lines] == ["set a timer for twenty six minutes", "drei null sechs vier"]
    assert [line["language"] for line in lines] == ["en", "de"]
    for line in lines:
        assert set(line) >= {"model", "variant", "device", "engine", "audio", "text", "language", "segments", "timings"}
        assert set(line["audio"]) == {"path", "duration_s", "sample_rate", "remark"}
        assert set(line["segments"][0]) >= {"start", "end", "text", "tokens", "avg_logprob", "no_speech_prob"}
        assert set(line["timings"]) >= {"load_s", "frontend_s", "encoder_s", "step_s", "total_s", "rtf"}


@pytest.mark.parametrize("engine", ["onnxruntime", "torchscript"])
def test_run_translates(root: Path, engine: str) -> None:
    arguments = ("--engine", engine, "--task", "translate", "--language", "German", "--root", root)
    process = atlasport("run", "whisper-pocket", SAMPLES / "short_de.wav", *arguments)
    assert process.stdout == "three zero six four\n"


def test_run_writes_every_format(root: Path, tmp_path: Path) -> None:
    arguments = ("--format", "txt,srt,vtt,tsv,json", "--out", tmp_path / "out", "--root", root)
    process = atlasport("run", "whisper-pocket", SHORT, *arguments)
    assert process.returncode == 0
    text = "set a timer for twenty six minutes"
    out = tmp_path / "out"
    assert sorted(path.suffix for path in out.iterdir()) == [".json", ".srt", ".tsv", ".txt", ".vtt"]
    assert (out / "short_en.txt").read_text().strip() == text
    # Spoken from 0.293 s to 2.756 s, samples/samples.json; the model rounds to 0.02 s.
    assert (out / "short_en.srt").read_text().splitlines()[1].startswith("00:00:00,")
    assert (out / "short_en.vtt").read_text().startswith("WEBVTT\n\n")
    row = next(csv.DictReader((out / "short_en.tsv").open(), delimiter="\t"))
    assert abs(int(row["end"]) - 2756) < 100
    assert json.loads((out / "short_en.json").read_text())["text"] == text


def test_clip_keeps_the_recording_s_times(root: Path) -> None:
    arguments = ("--clip", "1.5,", "--timestamps", "--json", "--root", root)
    whole = json.loads(atlasport("run", "whisper-pocket", SHORT, *arguments).stdout)
    assert whole["segments"][0]["start"] >= 1.5
    assert whole["segments"][-1]["end"] <= 1.5 + whole["audio"]["duration_s"]


@pytest.mark.parametrize("clip", ["2,1", "a", "-1,2", "nan,2"])
def test_bad_clip(root: Path, clip: str) -> None:
    assert_one_line(atlasport("run", "whisper-pocket", SHORT, f"--clip={clip}", "--root", root), 2, "clip")


def test_clip_behind_the_end(root: Path) -> None:
    process = atlasport("run", "whisper-pocket", SHORT, "--clip", "100,", "--root", root)
    assert_one_line(process, 2, "short_en.wav", "3.06 s", "100.0 s")


@pytest.mark.parametrize(
    ("option", "value"), [("--language", "klingon"), ("--task", "sing"), ("--format", "docx"), ("--temperatures", "x")]
)
def test_bad_option_values(root: Path, option: str, value: str) -> None:
    assert_one_line(atlasport("run", "whisper-pocket", SHORT, option, value, "--root", root), 2, value)


def test_one_bad_recording_does_not_hide_the_others(root: Path, tmp_path: Path) -> None:
    bad = tmp_path / "text.wav"
    bad.write_text("this is no audio")
    process = atlasport("run", "whisper-pocket", bad, SHORT, "--root", root)
    assert process.returncode == 2
    assert "set a timer for twenty six minutes" in process.stdout
    assert "text.wav" in process.stderr


def test_two_recordings_of_one_name_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    copy = shutil.copy(SHORT, tmp_path / "a" / "short_en.wav")
    process = atlasport("run", "whisper-pocket", SHORT, copy, "--out", tmp_path / "out", "--root", root)
    assert_one_line(process, 2, "short_en")


def test_damaged_artifact(own_root: Path) -> None:
    weights = own_root / "whisper-pocket" / "fp32" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert_one_line(atlasport("run", "whisper-pocket", SHORT, "--root", own_root), 4, "weights.safetensors", "SHA-256")
    process = atlasport("verify", "--root", own_root)
    assert process.returncode == 4
    manifest = own_root / "whisper-pocket" / "fp32" / "manifest.json"
    written = json.loads(manifest.read_text())
    for changed, said in (({"format_version": 1}, "export again"), ({"content_sha256": "0" * 64}, "damaged")):
        manifest.write_text(json.dumps(written | changed))
        listed = atlasport("models", "--json", "--root", own_root)
        assert listed.returncode == 0
        [row] = [row for row in map(json.loads, listed.stdout.splitlines()) if row["name"] == "whisper-pocket"]
        assert row["verified"]["fp32"].startswith(said)


def test_no_npu_says_what_is_missing(root: Path) -> None:
    assert_one_line(atlasport("run", "whisper-pocket", SHORT, "--device", "npu:0", "--root", root), 3, "npu:0")


def test_verify_passes_and_models_shows_it(own_root: Path) -> None:
    process = atlasport("verify", "whisper-pocket", "--runs", "3", "--root", own_root)
    folder = own_root / "whisper-pocket" / "fp32"
    assert process.returncode == 0, process.stderr
    assert f"verdict {folder}: pass; report: {folder / 'report.html'}" in process.stdout
    rows = {
        row["name"]: row
        for row in map(json.loads, atlasport("models", "--json", "--root", own_root).stdout.splitlines())
    }
    inference = json.loads((folder / "results" / "inference.json").read_text())
    spoken = [(golden["reference"]["text"], golden["result"]["text"]) for golden in inference["golden"]]
    said, heard = zip(*((words, text) for words, text in spoken if words), strict=True)
    rate = jiwer.wer(list(said), list(heard))
    verdict = f"pass (onnxruntime, torchscript; trained; WER {rate:.1%})"
    assert rows["whisper-pocket"]["verified"] == {"fp32": verdict}
    assert rows["whisper-tiny"]["verified"] == {}
    # A new export makes old results void.
    manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes(), "test")
    changed = Manifest.create(manifest.content.model_copy(update={"task": "another"}), manifest.export)
    (folder / "manifest.json").write_bytes(changed.to_bytes())
    rows = {
        row["name"]: row
        for row in map(json.loads, atlasport("models", "--json", "--root", own_root).stdout.splitlines())
    }
    assert rows["whisper-pocket"]["verified"] == {"fp32": "not run"}


def test_bad_usage_of_verify_is_said_once(own_root: Path) -> None:
    shutil.copytree(own_root / "whisper-pocket" / "fp32", own_root / "whisper-pocket" / "fp16")
    assert_one_line(atlasport("verify", "--cases", "spech", "--root", own_root), 2, "'spech'", "speech")


def test_verify_without_artifacts(tmp_path: Path) -> None:
    assert_one_line(atlasport("verify", "--root", tmp_path), 2, str(tmp_path), "export")


@pytest.mark.parametrize("columns", [40, 120])
def test_models_table_fits_the_terminal(root: Path, columns: int) -> None:
    process = atlasport("models", "--root", root, COLUMNS=str(columns))
    assert process.returncode == 0
    assert max(map(len, process.stdout.splitlines())) <= columns


@pytest.mark.slow
def test_export_says_what_to_do_next_wherever_the_artifact_is(tmp_path: Path) -> None:
    out = tmp_path / "[my models]"
    process = atlasport("export", "sed-pocket", "--precision", "fp16", "--formats", "onnx", "--out", out)
    assert process.returncode == 0, process.stderr
    _, _, command = process.stdout.splitlines()[-1].partition("; next: atlasport ")
    process = atlasport(*shlex.split(command), "--runs", "0")
    assert process.returncode == 0, process.stderr
    assert (out / "sed-pocket" / "fp16" / "report.html").is_file()
