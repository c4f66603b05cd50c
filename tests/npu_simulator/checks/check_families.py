"""Every family's graphs on the simulated device, by the engine itself; run by tests/npu/test_simulated_families.py.

The artifacts to check come in CHECK_ARTIFACTS, with TorchScript and .pt2 graphs. What is expected is what the same
engine computes on the CPU.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from npu_simulator import ROOT
from torch_npu import simulator

from runtime.artifact import Artifact, open_artifact
from runtime.audio import open_audio
from runtime.engines import load_engine
from runtime.engines.base import Engine, EngineSettings
from runtime.families import family_of
from runtime.family import Recognizer
from runtime.golden import Golden, run_case
from runtime.manifest import Case
from runtime.results import Result, Transcript
from verify.accuracy import judge_engine

ARTIFACTS = [Path(path) for path in os.environ["CHECK_ARTIFACTS"].split(os.pathsep)]
ENGINES = ("torchscript", "pt2")
# One window, one temperature, few tokens: what is counted below is then known.
OPTIONS: dict[str, dict[str, Any]] = {
    "whisper": {"language": "en", "temperatures": (0.0,), "max_new_tokens": 24},
    "cnn8rnn": {},
    "parakeet_tdt": {},
    "parakeet_ctc": {},
    "granite_speech": {"max_new_tokens": 8, "repetition_guard": False},
}
SHORT, OTHER = ROOT / "samples" / "short_en.wav", ROOT / "samples" / "short_de.wav"
FLAGS = (
    "set_compile_mode.jit_compile",
    "config.allow_internal_format",
    "conv.allow_hf32",
)


@dataclass(frozen=True)
class Opened:
    """An artifact opened on the device by one engine."""

    artifact: Artifact
    engine: Engine
    recognizer: Recognizer

    def recognize(self, path: Path, **options: Any) -> Any:
        given = OPTIONS[self.artifact.content.family] | options
        return self.recognizer.recognize(open_audio(path), family_of(self.artifact).options.parse(given))


def opened(path: Path, name: str, device: str = "npu:0", **settings: bool) -> Opened:
    artifact = open_artifact(path)
    engine = load_engine(artifact, name, device, 1, EngineSettings(**settings))
    return Opened(artifact, engine, family_of(artifact).open(artifact, engine, 0.0))


@pytest.fixture(autouse=True)
def healthy() -> Iterator[None]:
    """No faults; flags stay as the engines that are open have set them."""
    simulator.apply({})
    yield
    simulator.apply({})


# Programs take a second each to open.
shared = cache(opened)


@pytest.fixture(params=[(path, name) for path in ARTIFACTS for name in ENGINES], ids=str)
def on_npu(request: pytest.FixtureRequest) -> Opened:
    return shared(*request.param)


@pytest.fixture(params=ENGINES)
def first_on_npu(request: pytest.FixtureRequest) -> Opened:
    return shared(ARTIFACTS[0], request.param)


def alike(found: Any, expected: Any) -> bool:
    """Whether two results of `run --json` say the same; scores may differ in the last digits."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(alike(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(alike, found, expected))
    return found == pytest.approx(expected, rel=1e-3, abs=1e-4) if isinstance(expected, float) else found == expected


def said(result: Result) -> dict[str, Any]:
    """What was recognised, without where, how fast, and what was asked of the device."""
    left_out = ("device", "timings", "simulated", "counts")
    return {key: value for key, value in result.to_json().items() if key not in left_out}


def test_it_says_what_the_cpu_says(on_npu: Opened):
    on_cpu = shared(on_npu.artifact.path, on_npu.engine.name, "cpu")
    for path in (SHORT, OTHER):
        expected = said(on_cpu.recognize(path))
        assert expected["segments"]
        assert alike(said(on_npu.recognize(path)), expected)
    assert not alike(said(on_npu.recognize(SHORT)), expected)  # the comparison can tell


def devices_in_script(file: Path) -> list[Any]:
    script = torch.jit.load(file, map_location="cpu")
    nodes = [
        node
        for method in script._c._method_names()
        for node in script._c._get_method(method).graph.findAllNodes("prim::Constant", recurse=True)
    ]
    assert nodes
    return [node for node in nodes if node.output().type().kind() == "DeviceObjType"]


def nodes_of_program(file: Path) -> list[dict[str, Any]]:
    with zipfile.ZipFile(file) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("models/model.json")]
        nodes: list[dict[str, Any]] = json.loads(archive.read(name))["graph_module"]["graph"]["nodes"]
    assert nodes
    return nodes


def devices_in_program(file: Path) -> list[Any]:
    return [given for node in nodes_of_program(file) for given in node["inputs"] if "as_device" in given["arg"]]


@pytest.mark.parametrize("path", ARTIFACTS, ids=str)
def test_no_graph_holds_a_device(path: Path):
    artifact = open_artifact(path)
    graphs = artifact.content.graphs.values()
    assert not devices_in_script(artifact.file(next(iter(graphs)).files["torchscript"]))
    assert not [found for graph in graphs for found in devices_in_program(artifact.file(graph.files["pt2"]))]


def test_a_device_in_a_graph_shows(tmp_path: Path):
    class Baked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(3, device="cpu")

    x = torch.zeros(3)
    torch.jit.save(torch.jit.trace(Baked(), x), tmp_path / "baked.ts")
    torch.export.save(torch.export.export(Baked(), (x,)), tmp_path / "baked.pt2")
    assert devices_in_script(tmp_path / "baked.ts")
    assert devices_in_program(tmp_path / "baked.pt2")


def copies_of(run: Opened, path: Path) -> tuple[Transcript, dict[str, Any], int]:
    """Transcribe; return the copies by direction and the number of tokens that were chosen."""
    simulator.clear_record()
    transcript = run.recognize(path)
    tokens = sum(len(segment.tokens) for segment in transcript.segments)
    ended = tokens < OPTIONS["whisper"]["max_new_tokens"]  # then the end token was chosen too
    return transcript, simulator.report(), tokens + ended


def expected_whisper_copies(chosen: int) -> dict[str, int]:
    """To the device: samples, mel, prompt and rows; nothing per step. Back: mel, and logits per token."""
    return {"host_to_device": 4, "device_to_host": 1 + chosen}


def host_copies(report: dict[str, Any]) -> dict[str, int]:
    return {name: copies["count"] for name, copies in report["copies"].items() if name != "device_to_device"}


def test_one_small_copy_and_one_wait_per_token(on_npu: Opened):
    for path in (SHORT, OTHER):
        _, report, chosen = copies_of(on_npu, path)
        assert chosen > 3
        assert host_copies(report) == expected_whisper_copies(chosen)
        vocabulary = on_npu.artifact.content.dims["n_vocab"]
        back = report["copies"]["device_to_host"]["shapes"]
        assert back[f"Float[1, 1, {vocabulary}]"] == chosen - 1
        # One wait per token, for its logits; beside them those of the window, and the timer's at the ends of stages,
        # which a worker leaves out behind a copy to the host (tests/npu/test_simulated_families.py).
        waits = report["synchronizations"]
        assert waits.pop("device")
        assert waits == {"host_to_device": 4, "device_to_host": 1 + chosen}
        assert not report["fallbacks"]


def test_a_copy_too_many_shows(first_on_npu: Opened, monkeypatch: pytest.MonkeyPatch):
    engine = first_on_npu.engine
    write_rows = engine.write_rows

    def chatty(cache: Any, rows: Any, at: int, count: int) -> None:
        engine.get(rows)
        write_rows(cache, rows, at, count)

    monkeypatch.setattr(engine, "write_rows", chatty)
    _, report, chosen = copies_of(first_on_npu, SHORT)
    assert host_copies(report) != expected_whisper_copies(chosen)


def shapes_of(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(name, shapes) for name, calls in report["operators"].items() for shapes in calls["shapes"]}


def test_shapes_do_not_depend_on_the_recording(on_npu: Opened):
    """An NPU compiles for each new shape."""
    first, second = (copies_of(on_npu, path) for path in (SHORT, OTHER))
    assert shapes_of(first[1]) == shapes_of(second[1])
    assert first[0].audio.duration_s != second[0].audio.duration_s
    on_npu.recognize(ROOT / "samples" / "long_en.wav")
    assert set(on_npu.engine.probe.shapes().values()) == {1}


def test_another_shape_shows(first_on_npu: Opened):
    _, plain, _ = copies_of(first_on_npu, SHORT)
    simulator.clear_record()
    first_on_npu.recognize(SHORT, initial_prompt="a longer prompt that takes another prefill graph")
    assert shapes_of(plain) != shapes_of(simulator.report())


def flag_events() -> dict[str, tuple[str, int]]:
    events = simulator.report()["events"]
    return {event["name"]: (event["value"], event["operators_before"]) for event in events}


@pytest.mark.parametrize("name", ENGINES)
def test_flags_are_set_before_the_first_operator(name: str):
    artifact = open_artifact(ARTIFACTS[0])
    simulator.clear_record()
    engine = load_engine(artifact, name, "npu:0", 1, EngineSettings())
    found = flag_events()
    run_case(engine, artifact.content.graphs["encoder"], Golden(artifact), encoder_case(artifact))
    assert simulator.report()["operators_run"]
    assert flag_events() == found
    assert found == dict.fromkeys(FLAGS, ("False", 0))


def test_flags_after_an_operator_show():
    simulator.clear_record()
    torch.zeros(1, device="npu")
    opened(ARTIFACTS[0], "torchscript")
    assert all(before == 1 for _, before in flag_events().values())


def encoder_case(artifact: Artifact) -> Case:
    return next(case for case in artifact.content.cases if case.graph == "encoder")


def encoder_error(run: Opened) -> float:
    """Relative L2 of the encoder's worst output against the same engine on the CPU."""
    content = run.artifact.content
    case, golden = encoder_case(run.artifact), Golden(run.artifact)
    on_cpu = shared(run.artifact.path, run.engine.name, "cpu").engine
    found, expected = (run_case(engine, content.graphs["encoder"], golden, case) for engine in (run.engine, on_cpu))
    return max(float(np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])) for name in found)


@pytest.mark.parametrize("soc", ["910B4", "910_9391"])
def test_fp32_is_fp32(soc: str, monkeypatch: pytest.MonkeyPatch):
    """And is not under the device's own defaults."""
    monkeypatch.setenv("NPU_SIMULATOR_SOC", soc)
    simulator.restart()
    assert encoder_error(opened(ARTIFACTS[0], "torchscript", default_precision=True)) > 2e-5
    run = opened(ARTIFACTS[0], "torchscript")
    assert encoder_error(run) < 2e-6
    assert run.engine.probe.facts.versions["soc"] == f"Ascend{soc}"
    assert alike(said(run.recognize(SHORT)), said(shared(ARTIFACTS[0], "torchscript", "cpu").recognize(SHORT)))


MATMULS = "aten::(matmul|mm|bmm|addmm)"
ABOVE = [
    (MATMULS, "fp16", 0.0, "structure"),
    (MATMULS, "bf16", 0.0, "structure"),
    (MATMULS, "hf32", 0.0, "structure"),
    ("aten::convolution", "hf32", 0.0, "structure"),
    ("aten::scaled_dot_product_attention", "bf16", 0.0, "structure"),
    ("aten::log10", "hf32", 0.0, "structure"),
    ("aten::gelu", "gain", 1.1, "structure"),
    ("aten::embedding", "gain", 1.001, "structure"),
    ("aten::softmax", "nan", 0.0, "overflow"),
]
BELOW = [
    (MATMULS, "gain", 1 + 1e-6),
    ("aten::gelu", "gain", 1 + 1e-6),
    ("aten::native_layer_norm", "gain", 1 - 1e-6),
]


def verdict(run: Opened, operators: str, kind: str, amount: float) -> tuple[str, set[str]]:
    """Judge one case of each graph with a fault in force; return the verdict and the gates that failed."""
    first = {case.graph: case.name for case in reversed(run.artifact.content.cases)}
    simulator.clear_record()
    simulator.apply({"faults": [{"operators": operators, "kind": kind, "amount": amount}]})
    accuracy, _ = judge_engine(run.artifact, run.engine, selected=set(first.values()))
    assert simulator.report()["fault_hits"]
    return accuracy.verdict, {gate.name.partition(".")[0] for gate in accuracy.gates if gate.passed is False}


@pytest.mark.parametrize(("operators", "kind", "amount", "gate"), ABOVE)
def test_a_numeric_fault_above_tolerance_fails(
    first_on_npu: Opened, operators: str, kind: str, amount: float, gate: str
):
    found, gates = verdict(first_on_npu, operators, kind, amount)
    assert found == "fail"
    assert gate in gates


@pytest.mark.parametrize(("operators", "kind", "amount"), BELOW)
def test_a_numeric_fault_below_tolerance_passes(first_on_npu: Opened, operators: str, kind: str, amount: float):
    assert verdict(first_on_npu, operators, kind, amount) == ("pass", set())


def test_capture_says_the_same():
    expected = said(shared(ARTIFACTS[0], "torchscript", "cpu").recognize(SHORT))
    run = opened(ARTIFACTS[0], "torchscript", capture=True)
    run.recognize(OTHER)
    simulator.clear_record()
    assert alike(said(run.recognize(SHORT)), expected)
    replays = [event for event in simulator.report()["events"] if event["name"] == "replay"]
    assert len(replays) > 3


def test_capture_that_keeps_an_input_shows(monkeypatch: pytest.MonkeyPatch):
    """A recording reads its inputs where they lay; an engine that forgets to copy them there is found out."""
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, *_: self)
    with pytest.raises(Exception, match="captured graph differs from the eager one"):
        opened(ARTIFACTS[0], "torchscript", capture=True).recognize(SHORT)
