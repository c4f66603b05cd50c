"""What the report says was covered, of runs that are counted by hand, and its commands, which are run."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import soundfile

from runtime.artifact import open_artifact
from verify.coverage import commands, covered
from verify.results_folder import Results
from verify.run import verify_artifact

HEARD = ("short_en", "short_de", "short_es", "nospeech")


def test_a_part_is_said_and_repeated_by_its_command(pocket_artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "whisper-pocket" / "fp32"
    shutil.copytree(pocket_artifact, folder)
    patterns = ("step_4", "prefill_3", "short_*", "nospeech")
    verify_artifact(folder, engines=["onnxruntime"], cases=patterns, threads=1, runs=0)
    artifact = open_artifact(folder)
    results = Results.read(artifact)
    said = dict(covered(artifact.content, results))
    assert said["engines"] == "onnxruntime"
    counts = "4 of 23 golden cases, 4 of 7 graphs, 4 of 5 recordings, 3 languages (de, en, es)"
    lengths = [soundfile.info(folder / "audio" / f"{name}.wav").duration for name in HEARD]
    assert said["ran"] == f"{counts}, {sum(lengths):.0f} s, the longest {max(lengths):.0f} s"
    assert said["options"].startswith("temperatures [0.0]; vad False; logprob_threshold 0.0 (nospeech); ")
    assert said["not covered"].startswith("the engine torchscript, the recording long_en, ")
    command, source = commands(artifact.content, results)
    _run(command, tmp_path)
    again = json.loads((folder / "results" / "accuracy.json").read_text())
    assert again["selection"] == list(patterns)
    assert [engine["engine"] for engine in again["engines"]] == ["onnxruntime"]
    assert again["flags"]["threads"] == "1"
    checkpoint = Path(__file__).resolve().parents[2] / "pocket" / "whisper-pocket"
    _run(source.replace("CHECKPOINT", shlex.quote(str(checkpoint))), tmp_path)


def _run(command: str, cwd: Path) -> None:
    program, *arguments = shlex.split(command)
    assert program == "atlasport"
    subprocess.run([sys.executable, "-m", "atlasport", *arguments], cwd=cwd, check=True)
