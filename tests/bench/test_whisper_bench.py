from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

pytest.importorskip("faster_whisper", reason="the peers are not installed: pip install 'atlasport[bench]'")

from bench.__main__ import AUDIO
from bench.whisper import agreeing_tokens, compare, prompt_of, window_of
from bench.whisper_contestants import Contestant, Ours, Transformers, write_checkpoint
from export.pipeline import export_model
from runtime.artifact import Artifact, open_artifact
from runtime.families.whisper.settings import WhisperFrontend, WhisperSettings

# `make test-slow` installs the peers.
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TOKENS = 16


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return open_artifact(
        export_model("whisper-pocket", formats=("onnx",), out=tmp_path_factory.mktemp("artifacts"), recordings=())
    )


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def first_tokens(contestant: Contestant, artifact: Artifact) -> list[int]:
    mel = window_of(AUDIO, WhisperFrontend.model_validate(artifact.content.frontend))
    prompt = prompt_of(WhisperSettings.model_validate(artifact.content.settings))
    tokens, _ = compare([contestant], mel, prompt, TOKENS, 1)
    return tokens[contestant.name]


def test_all_contestants_do_the_same_work_and_every_field_is_there(artifact: Artifact, tmp_path: Path) -> None:
    run = bench(str(artifact.path), "--runs", "2", "--tokens", str(TOKENS), "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "whisper-pocket.json").read_text())
    assert {"model", "variant", "weights", "created", "environment", "protocol", "busy"} <= set(results)
    assert {"cpu", "cores", "versions", "load_1min"} <= set(results["environment"])
    assert results["protocol"]["tokens"] == TOKENS
    (name, workload), *others = results["workloads"].items()
    assert name == "6 s of audio, 16 tokens"
    assert not others
    assert set(workload["contestants"]) == {"atlasport onnxruntime", "transformers eager", "faster-whisper"}
    for name, entry in workload["contestants"].items():
        assert (entry["equal_tokens"], entry["tokens"]) == (TOKENS, TOKENS), name
        assert len(entry["runs"]) == 2
        assert name in run.stdout
    peers = {name: workload["contestants"][name] for name in ("transformers eager", "faster-whisper")}
    assert min(peers, key=lambda name: peers[name]["median"]["wall_s"]["total"]) == workload["fastest_peer"]
    assert peers[workload["fastest_peer"]]["ratio"] == {"wall_s": 1.0, "cpu_s": 1.0}

    chart = ET.parse(tmp_path / "whisper-pocket.svg").getroot()
    texts = [element.text for element in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert set(workload["contestants"]) <= set(texts)


def test_other_weights_show_in_the_tokens(artifact: Artifact, tmp_path: Path) -> None:
    eot = WhisperSettings.model_validate(artifact.content.settings).eot
    ours = first_tokens(Ours(artifact, "onnxruntime", 1), artifact)
    write_checkpoint(artifact, tmp_path)
    peer = first_tokens(Transformers(tmp_path, eot), artifact)
    assert agreeing_tokens(ours, peer) == TOKENS

    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["model.decoder.layer_norm.weight"] *= -1
    save_file(weights, file, metadata={"format": "pt"})
    changed = first_tokens(Transformers(tmp_path, eot), artifact)
    assert agreeing_tokens(ours, changed) < TOKENS


class StopsEarly:
    name = "stops early"

    def encode(self, mel: Any) -> Any:
        return mel

    def decode(self, _encoded: Any, _prompt: Any, count: int, *, distinct: bool) -> list[int]:
        del distinct
        return [0] * (count - 1)


def test_a_contestant_that_stops_early_ends_the_benchmark() -> None:
    with pytest.raises(RuntimeError, match="expected 8 tokens, found 7"):
        compare([StopsEarly()], np.zeros((80, 600), np.float32), [1], 8, 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("no-such-model",), "no-such-model"),
        (("{artifact}", "--tokens", "93"), "at most 92"),
        (("{artifact}", "--audio", "no-such.wav"), "no-such.wav"),
    ],
)
def test_bad_input_is_one_line(artifact: Artifact, tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    given = [part.format(artifact=artifact.path) for part in arguments]
    run = bench(*given, "--out", str(tmp_path))
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert expected in run.stderr
    assert not list(tmp_path.iterdir())
