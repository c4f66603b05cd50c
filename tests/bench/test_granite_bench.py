from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from bench.granite import DESIGN, SECONDS, compare
from bench.granite_artifact import write_artifact
from bench.granite_contestants import OURS, TRANSFORMERS, Ours, Transformers, Work, peak_memory
from bench.measure import Cost, Run
from bench.report import results_of
from runtime.artifact import Artifact, open_artifact
from runtime.errors import EnvironmentNotFitError, GateError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WORK = Work(np.zeros((5, 160), np.float32), (1, 2), 3)


class Fixed:
    """A contestant that finds the same tokens in anything."""

    def __init__(self, name: str, tokens: list[int], decode_s: float = 2.0) -> None:
        self.name = name
        self.tokens = tokens
        self.decode_s = decode_s

    def run(self, work: Work, *, distinct: bool) -> tuple[Run, list[int]]:
        del work, distinct
        return {"encoder": Cost(1.0, 1.0), "prefill": Cost(0.5, 0.5), "decode": Cost(self.decode_s, 1.0)}, self.tokens


def test_facts_are_of_the_tokens_and_the_steps() -> None:
    ours, theirs = Fixed(OURS, [5, 6, 8]), Fixed(TRANSFORMERS, [5, 6, 7], decode_s=4.0)
    workload = compare([ours, theirs], WORK, 2)
    # The first token comes from the prompt: two steps for three tokens.
    assert workload.facts[OURS] == {"tokens": 3, "equal_tokens": 2, "tokens_per_s": 1.0}
    assert workload.facts[TRANSFORMERS] == {"tokens": 3, "equal_tokens": 3, "tokens_per_s": 0.5}
    assert [len(runs) for runs in workload.runs.values()] == [2, 2]


@pytest.mark.parametrize("tokens", [[4, 6, 7], [5, 6], []])
def test_who_finds_something_else_is_not_timed(tokens: list[int]) -> None:
    with pytest.raises(GateError, match=r"atlasport onnxruntime: expected 3 tokens from 5 on, .* nothing was timed"):
        compare([Fixed(OURS, tokens), Fixed(TRANSFORMERS, [5, 6, 7])], WORK, 1)


def test_each_part_has_its_verdict(sed_artifact: Path) -> None:
    workload = compare([Fixed(OURS, [5, 6, 7], 3.0), Fixed(TRANSFORMERS, [5, 6, 7])], WORK, 1)
    results = results_of(open_artifact(sed_artifact), DESIGN, {"short": workload}, {})
    targets = results["workloads"]["short"]["targets"]
    assert [(target["part"], target["met"]) for target in targets] == [
        ("encoder", True),
        ("prefill", True),
        ("decode", False),
    ]
    assert targets[2]["ratio"]["wall_s"] == 1.5


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return open_artifact(write_artifact("granite-pocket", 1, tmp_path_factory.mktemp("granite") / "artifact"))


def small_work(artifact: Artifact, count: int) -> Work:
    dims, settings = artifact.content.dims, artifact.content.settings
    features = np.random.default_rng(0).normal(0, 1, (47, 2 * dims["n_mels"])).astype(np.float32)
    audio = -(-47 // dims["window"]) * (dims["window"] // dims["downsample"])
    return Work(features, (1, *[settings["audio_token"]] * audio, 2, 3), count)


@pytest.mark.slow
def test_ours_and_transformers_do_the_same_work(artifact: Artifact) -> None:
    assert artifact.content.dims["lm_layers"] == 1
    work = small_work(artifact, 12)
    ours, theirs = Ours(artifact, 1), Transformers(artifact, 1)
    workload = compare([ours, theirs], work, 1)
    assert workload.facts[OURS]["equal_tokens"] == 12
    for (run,) in workload.runs.values():
        assert list(run) == ["encoder", "prefill", "decode"]
    # Other weights show in the tokens: the agreement above is none of repeated tokens.
    theirs.model.model.projector.linear.weight.data.mul_(-1)
    _, changed = theirs.run(work, distinct=True)
    assert changed != ours.run(work, distinct=True)[1]


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(artifact: Artifact) -> None:
    ballast = np.ones(400_000_000, np.uint8)
    peak = peak_memory(artifact, OURS, 1, small_work(artifact, 2))
    assert 40e6 < peak < 400e6, ballast.nbytes


class Ending:
    """Ends the process that it is sent to."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (9,)


def test_a_contestant_whose_process_is_killed_ends_the_benchmark_in_one_line(sed_artifact: Path) -> None:
    with pytest.raises(EnvironmentNotFitError, match=r"atlasport onnxruntime: .* process killed; .*--lm-layers"):
        peak_memory(open_artifact(sed_artifact), OURS, 1, cast("Work", Ending()))


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_writes_every_field(tmp_path: Path) -> None:
    options = ("--runs", "2", "--tokens", "8", "--lm-layers", "1", "--out", str(tmp_path))
    run = bench("granite-pocket", "--weights", "random", *options)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "granite-pocket.json").read_text())
    assert {"torch", "transformers", "onnxruntime"} <= set(results["environment"]["versions"])
    assert results["protocol"]["dims"]["lm_layers"] == 1
    assert [name.split(" s of audio, 8 tokens, 1 of ")[0] for name in results["workloads"]] == [
        f"{seconds:g}" for seconds in SECONDS
    ]
    for workload in results["workloads"].values():
        assert set(workload["contestants"]) == {OURS, TRANSFORMERS}
        for name, entry in workload["contestants"].items():
            assert entry["equal_tokens"] == entry["tokens"] == 8, name
            assert entry["tokens_per_s"] > 0
            assert entry["peak_bytes"] > 40e6
            assert len(entry["runs"]) == 2
            for clock in ("wall_s", "cpu_s"):
                assert all(seconds > 0 for seconds in entry["median"][clock].values()), name
    chart = ET.parse(tmp_path / "granite-pocket.svg").getroot()
    texts = [element.text for element in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert {*results["workloads"], OURS, TRANSFORMERS, *DESIGN.parts.values()} <= set(texts)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("whisper-tiny", "--weights", "random", "--lm-layers", "2"), "--lm-layers: expected a Granite Speech"),
        (("granite-pocket", "--lm-layers", "2"), "--weights random"),
    ],
)
def test_layers_are_left_out_of_random_granite_only(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    run = bench(*arguments, "--out", str(tmp_path))
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
    assert expected in run.stderr
    assert not list(tmp_path.iterdir())
