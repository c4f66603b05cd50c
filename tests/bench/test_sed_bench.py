from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.cnn8rnn import DESIGN, EAGER, Eager, Ours, compare, source_of
from bench.measure import Cost
from bench.report import Workload, results_of
from export.families.cnn8rnn.source import SourceCnn8Rnn
from export.pipeline import export_model
from runtime.artifact import Artifact, open_artifact
from runtime.engines.base import Floats
from runtime.errors import GateError, InputError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "pocket" / "sed-pocket"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("artifacts")
    return open_artifact(export_model("sed-pocket", formats=("onnx", "torchscript"), out=out, recordings=()))


@pytest.fixture(scope="module")
def samples() -> Floats:
    return np.random.default_rng(0).normal(0, 0.1, 64000).astype(np.float32)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def eager(artifact: Artifact) -> Eager:
    return Eager(source_of(artifact, None))


@pytest.mark.slow
def test_all_contestants_do_the_same_work_and_every_field_is_there(artifact: Artifact, tmp_path: Path) -> None:
    run = bench(str(artifact.path), "--runs", "2", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "sed-pocket.json").read_text())
    assert {"model", "variant", "weights", "created", "environment", "protocol", "busy"} <= set(results)
    assert set(results["environment"]["versions"]) == {"torch", "onnxruntime", "numpy"}
    assert set(results["workloads"]) == {"10 s of audio", "60 s of audio"}
    for workload in results["workloads"].values():
        assert set(workload["contestants"]) == {"atlasport onnxruntime", "atlasport torchscript", EAGER}
        for name, entry in workload["contestants"].items():
            assert len(entry["runs"]) == 2
            assert entry["largest_difference"] <= 1e-3 * entry["largest_logit"]
            for clock in ("wall_s", "cpu_s"):
                median = entry["median"][clock]
                totals = [run[part][clock] for run in entry["runs"] for part in ("frontend", "body")]
                assert median["total"] == pytest.approx(sum(totals) / 2)  # of two runs the median is the mean
            assert name in run.stdout
        assert workload["contestants"][EAGER]["largest_difference"] == 0
        # Different code: not one bit-equal network compared with itself.
        assert workload["contestants"]["atlasport onnxruntime"]["largest_difference"] > 0

    chart = ET.parse(tmp_path / "sed-pocket.svg").getroot()
    texts = [element.text for element in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert {*results["workloads"], "atlasport onnxruntime", EAGER, "log-mel", "network"} <= set(texts)


@pytest.mark.parametrize("tensor", ["fc_audioset.bias", "conv_block1.bn1.running_var", "rnn.weight_hh_l0_reverse"])
def test_a_peer_with_other_weights_is_not_timed(artifact: Artifact, samples: Floats, tensor: str) -> None:
    source = source_of(artifact, None)
    ours, peer = Ours(artifact, "onnxruntime", 1), Eager(source)
    assert set(compare([ours, peer], samples, 1).runs) == {"atlasport onnxruntime", EAGER}
    assert isinstance(source, SourceCnn8Rnn)
    with torch.no_grad():
        source.network.state_dict()[tensor].mul_(1.1)
    with pytest.raises(GateError, match=r"onnxruntime: expected the logits of eager PyTorch .*; nothing was timed"):
        compare([ours, peer], samples, 1)


def test_logits_that_are_not_finite_are_not_timed(artifact: Artifact, samples: Floats) -> None:
    source = source_of(artifact, None)
    assert isinstance(source, SourceCnn8Rnn)
    with torch.no_grad():
        source.network.state_dict()["fc_audioset.bias"][0] = torch.nan
    with pytest.raises(GateError):
        compare([Ours(artifact, "torchscript", 1), Eager(source)], samples, 1)


@pytest.mark.slow
def test_the_peer_gets_what_the_artifact_was_exported_from(tmp_path: Path) -> None:
    other = shutil.copytree(SHIPPED, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(SHIPPED / "model.safetensors")
    weights["fc_audioset.bias"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    artifact = open_artifact(
        export_model("sed-pocket", weights=str(other), formats=("onnx",), out=tmp_path / "artifacts", recordings=())
    )
    with pytest.raises(InputError, match="expected weights from other, found others"):
        source_of(artifact, None)
    found = source_of(artifact, str(other))
    assert isinstance(found, SourceCnn8Rnn)
    assert torch.equal(found.network.state_dict()["fc_audioset.bias"], weights["fc_audioset.bias"])


@pytest.mark.slow
def test_random_weights_are_the_peers_too(tmp_path: Path, samples: Floats) -> None:
    artifact = open_artifact(
        export_model("sed-pocket", weights="random", formats=("onnx",), out=tmp_path, recordings=())
    )
    assert set(compare([Ours(artifact, "onnxruntime", 1), eager(artifact)], samples, 1).runs) >= {EAGER}


def test_ratios_and_the_verdict(artifact: Artifact) -> None:
    def workload(own: float) -> Workload:
        seconds = {"atlasport onnxruntime": own, "atlasport torchscript": 9.0, EAGER: 8.0}
        runs = {name: [{"frontend": Cost(1.0, 1.0), "body": Cost(s - 1, s - 1)}] for name, s in seconds.items()}
        return Workload(runs, {name: {"largest_difference": 0.0} for name in seconds})

    results = results_of(artifact, DESIGN, {"short": workload(4.0), "long": workload(4.1)}, {})
    short, long = results["workloads"]["short"], results["workloads"]["long"]
    assert short["contestants"]["atlasport torchscript"]["ratio"] == {"wall_s": 9 / 8, "cpu_s": 9 / 8}
    assert short["targets"][0]["engine"] == "atlasport onnxruntime"
    assert (short["targets"][0]["met"], long["targets"][0]["met"]) == (True, False)
    assert not results["busy"]


def test_a_busy_machine_is_told(artifact: Artifact) -> None:
    runs = {"atlasport onnxruntime": [{"body": Cost(1.2, 1.0)}], EAGER: [{"body": Cost(1.0, 1.0)}]}
    workload = Workload(runs, {name: {} for name in runs})
    assert results_of(artifact, DESIGN, {"short": workload}, {})["busy"]


@pytest.mark.slow
def test_bad_input_is_one_line(artifact: Artifact, tmp_path: Path) -> None:
    half = export_model("sed-pocket", variant="fp16", formats=("onnx",), out=tmp_path / "half", recordings=())
    for arguments, expected in (
        (("no-such-model",), "no-such-model"),
        ((str(artifact.path), "--audio", "no-such.wav"), "no-such.wav"),
        ((str(half),), "found fp16"),
    ):
        run = bench(*arguments, "--out", str(tmp_path / "results"))
        assert run.returncode == 2
        assert run.stderr.count("\n") == 1
        assert expected in run.stderr
    assert not (tmp_path / "results").exists()
