from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

pytest.importorskip("onnx_asr", reason="the peers are not installed: pip install 'atlasport[bench]'")
pytest.importorskip("sherpa_onnx", reason="the peers are not installed: pip install 'atlasport[bench]'")

from bench.measure import Cost, Run
from bench.parakeet import DESIGN, SECONDS, common_tokens, compare
from bench.report import Workload, results_of
from export.pipeline import export_model
from runtime.artifact import Artifact, open_artifact
from runtime.engines.base import Floats
from runtime.errors import GateError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OURS, ONNX_ASR, SHERPA, TRANSFORMERS = "atlasport onnxruntime", "onnx-asr", "sherpa-onnx", "transformers eager"


class Fixed:
    """A contestant that finds the same tokens in anything."""

    def __init__(self, name: str, tokens: list[int]) -> None:
        self.name = name
        self.tokens = tokens

    def run(self, samples: Floats) -> tuple[Run, list[int]]:
        del samples
        return {"encoder": Cost(1.0, 1.0)}, self.tokens


def test_who_finds_fewer_tokens_is_not_timed() -> None:
    samples = np.zeros(1600, np.float32)
    ours = Fixed(OURS, list(range(40)))
    workload = compare([ours, Fixed(ONNX_ASR, list(range(1, 41)))], samples, 2)
    assert workload.facts[ONNX_ASR] == {"tokens": 40, "found": 40, "equal_tokens": 39}
    assert [len(runs) for runs in workload.runs.values()] == [2, 2]
    with pytest.raises(GateError, match=r"sherpa-onnx: expected about 40 tokens, .* found 37; nothing was timed"):
        compare([ours, Fixed(SHERPA, list(range(37)))], samples, 1)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([], [], 0), ([1, 2, 3], [1, 2, 3], 3), ([1, 2, 3, 4], [2, 9, 3, 4], 3), ([1, 1], [2], 0)],
)
def test_tokens_in_common(one: list[int], other: list[int], expected: int) -> None:
    assert common_tokens(one, other) == expected


def test_each_part_has_its_target(sed_artifact: Path) -> None:
    seconds = {OURS: (1.02, 0.5), ONNX_ASR: (1.1, 0.4), SHERPA: (1.0, 0.3), TRANSFORMERS: (3.0, 0.2)}
    runs = {
        name: [{"frontend": Cost(0.1, 0.1), "encoder": Cost(encoder, encoder), "decoder": Cost(decoder, decoder)}]
        for name, (encoder, decoder) in seconds.items()
    }
    workload = Workload(runs, {name: {} for name in seconds})
    results = results_of(open_artifact(sed_artifact), DESIGN, {"short": workload}, {})
    encoder, decoder = results["workloads"]["short"]["targets"]
    assert (encoder["part"], encoder["peer"], encoder["met"]) == ("encoder", SHERPA, True)
    assert encoder["ratio"]["wall_s"] == pytest.approx(1.02)
    # The search is compared with onnx-asr's only.
    assert (decoder["part"], decoder["peer"], decoder["met"]) == ("decoder", ONNX_ASR, False)
    assert decoder["ratio"]["wall_s"] == pytest.approx(0.5 / 0.4)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("artifacts")
    return open_artifact(export_model("parakeet-pocket", formats=("onnx",), out=out, recordings=()))


@pytest.mark.slow
def test_all_contestants_do_the_same_work_and_every_field_is_there(artifact: Artifact, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", str(artifact.path), "--runs", "2", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "parakeet-pocket.json").read_text())
    assert {"onnx-asr", "sherpa-onnx", "transformers"} <= set(results["environment"]["versions"])
    assert list(results["workloads"]) == [f"{seconds:g} s of audio" for seconds in SECONDS]
    for workload in results["workloads"].values():
        assert set(workload["contestants"]) == {OURS, ONNX_ASR, SHERPA, TRANSFORMERS}
        for name, entry in workload["contestants"].items():
            # Trained weights decide by wide margins: features of four implementations give the same tokens.
            assert entry["equal_tokens"] == entry["tokens"] == entry["found"], name
            assert entry["tokens"] > 0
            assert len(entry["runs"]) == 2
            for clock in ("wall_s", "cpu_s"):
                assert all(seconds > 0 for seconds in entry["median"][clock].values()), name
    chart = ET.parse(tmp_path / "parakeet-pocket.svg").getroot()
    texts = [element.text for element in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert {*results["workloads"], OURS, ONNX_ASR, SHERPA, TRANSFORMERS, "log-mel", "encoder", "search"} <= set(texts)
