"""Every gate gets an injected fault: a graph with a known bug must fail the verdict, by the right gate.

The faulty graphs are export's own modules with one thing broken, run eagerly on the artifact's weights in place of the
frozen graph; the sound modules run the same way first, to show that it is the bug that is seen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from export.families.whisper.alignment import Alignment, last_half
from export.families.whisper.graphs import whisper_graphs
from export.families.whisper.modules import Whisper
from export.graphs import GraphDefinition
from runtime.artifact import Artifact, open_artifact
from runtime.engines import open_engine
from runtime.engines.base import Engine
from runtime.errors import DamagedArtifactError
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend
from runtime.golden import Golden
from runtime.manifest import MANIFEST_NAME, Content, ExportRecord, Manifest
from verify.accuracy import judge_engine
from verify.families.whisper import faults
from verify.faults import Arrays, Fault, FaultyEngine, RunGraph
from verify.golden import select
from verify.results import EngineAccuracy
from verify.run import verify_artifact

Graphs = dict[str, GraphDefinition]


@pytest.fixture(scope="module")
def artifact(pocket_artifact: Path) -> Artifact:
    return open_artifact(pocket_artifact)


@pytest.fixture(scope="module")
def engine(artifact: Artifact) -> Iterator[Engine]:
    engine = open_engine(artifact, "onnxruntime", threads=1)
    yield engine
    engine.close()


@pytest.fixture
def graphs(artifact: Artifact) -> Graphs:
    """The modules that the artifact was made from."""
    dims = WhisperDims.model_validate(artifact.content.dims)
    model = Whisper(dims)
    model.load_state_dict(load_file(artifact.file("weights.safetensors")))
    frontend = WhisperFrontend.model_validate(artifact.content.frontend)
    alignment = Alignment(last_half(dims), range(dims.n_vocab, dims.n_vocab))
    return whisper_graphs(model, dims, frontend, torch.float32, alignment)


def judged(artifact: Artifact, engine: Engine, fault: Fault) -> EngineAccuracy:
    """Judge by the faulty graphs' cases, the teacher-forced run and one recording."""
    cases = {case.name for case in artifact.content.cases if case.graph.startswith(fault.graph)}
    rest = {artifact.content.teacher_forced[0].name, artifact.content.recordings[0].name}
    return judge_engine(artifact, FaultyEngine(engine, artifact, fault), selected=cases | rest)[0]


def failed(accuracy: EngineAccuracy) -> set[str]:
    return {gate.name for gate in accuracy.gates if gate.passed is False}


def eager(graphs: Graphs, graph: str) -> Callable[[RunGraph, Arrays], Arrays]:
    """Return a stand-in for the frozen graph: the module, run by torch."""

    def call(_: RunGraph, inputs: Arrays) -> Arrays:
        name = f"prefill_{inputs['tokens'].shape[1]}" if graph == "prefill" else graph
        definition = graphs[name]
        values = [torch.from_numpy(inputs[spec.name]) for spec in definition.inputs]
        with torch.no_grad():
            results = definition.module(*values)
        results = results if isinstance(results, tuple) else (results,)
        return {spec.name: result.numpy() for spec, result in zip(definition.outputs, results, strict=True)}

    return call


@pytest.mark.parametrize("graph", ["frontend", "encoder", "prefill", "step"])
def test_sound_modules_pass(artifact: Artifact, engine: Engine, graphs: Graphs, graph: str) -> None:
    accuracy = judged(artifact, engine, Fault("none", graph, "", eager(graphs, graph)))
    assert accuracy.verdict == "pass", accuracy.reason


def test_symmetric_hann(artifact: Artifact, engine: Engine, graphs: Graphs) -> None:
    module = graphs["frontend"].module
    n_fft = module.kernel.shape[-1]
    periodic, symmetric = (torch.hann_window(n_fft, periodic=periodic) for periodic in (True, False))
    module.kernel *= torch.where(periodic > 0, symmetric / periodic, 0)
    accuracy = judged(artifact, engine, Fault("symmetric Hann", "frontend", "", eager(graphs, "frontend")))
    assert accuracy.verdict == "fail"
    assert "structure.relative_l2" in failed(accuracy)
    speech = next(case for case in accuracy.cases if case.case == "speech_audio")
    assert speech.outputs[0].difference.relative_l2 < 0.01, "an error that a limit of 1 % lets pass"


def test_missing_causal_mask(artifact: Artifact, engine: Engine, graphs: Graphs) -> None:
    for name, graph in graphs.items():
        if name.startswith("prefill"):
            graph.module.future.zero_()
    accuracy = judged(artifact, engine, Fault("no mask", "prefill", "", eager(graphs, "prefill")))
    assert accuracy.verdict == "fail"
    assert "structure.relative_l2" in failed(accuracy)


def test_cache_mask_one_row_off(artifact: Artifact, engine: Engine, graphs: Graphs) -> None:
    """The step reads the row at its own position: garbage in the golden cases, a stale row in use."""
    graphs["step"].module.positions -= 1
    accuracy = judged(artifact, engine, Fault("mask off by one", "step", "", eager(graphs, "step")))
    assert accuracy.verdict == "fail"
    assert {"structure.relative_l2", "decisions.kl"} <= failed(accuracy)


@pytest.mark.parametrize("graph", ["encoder", "prefill", "step"])
def test_softmax_in_fp16(
    artifact: Artifact, engine: Engine, graphs: Graphs, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    softmax = torch.softmax

    def half(scores: torch.Tensor, dim: int) -> torch.Tensor:
        return softmax(scores.half(), dim).float()

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return half(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, -1) @ value

    monkeypatch.setattr(torch, "softmax", half)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    accuracy = judged(artifact, engine, Fault("fp16 softmax", graph, "", eager(graphs, graph)))
    assert accuracy.verdict == "fail"
    assert failed(accuracy) & {"structure.relative_l2", "structure.max_relative"}


def test_two_vocabulary_rows_swapped(artifact: Artifact, engine: Engine) -> None:
    forced = artifact.content.teacher_forced[0]
    spoken, other = forced.tokens[forced.prompt + 1], forced.tokens[forced.prompt + 1] + 1

    def swap(run: RunGraph, inputs: Arrays) -> Arrays:
        outputs = run(inputs)
        outputs["logits"][..., [spoken, other]] = outputs["logits"][..., [other, spoken]]
        return outputs

    accuracy = judged(artifact, engine, Fault("swap", "step", "", swap))
    assert accuracy.verdict == "fail"
    assert {"decisions.tokens", "decisions.kl", "task.text", "task.tokens"} <= failed(accuracy)


def test_values_at_the_limit(artifact: Artifact, engine: Engine) -> None:
    """A device that saturates: infinity has become the largest number."""

    def saturate(run: RunGraph, inputs: Arrays) -> Arrays:
        outputs = run(inputs)
        outputs["hidden"][0, 0, 0] = np.finfo(np.float32).max
        return outputs

    accuracy = judged(artifact, engine, Fault("saturation", "encoder", "", saturate))
    assert accuracy.verdict == "fail"
    assert "overflow.at_limit" in failed(accuracy)


def test_times_one_tick_late(artifact: Artifact, engine: Engine) -> None:
    """Long form: every timestamp token stands one too high; the text stays."""
    begin = artifact.content.settings["timestamp_begin"]
    name = "long_en"

    def late(run: RunGraph, inputs: Arrays) -> Arrays:
        outputs = run(inputs)
        outputs["logits"][..., begin:] = np.roll(outputs["logits"][..., begin:], 1, axis=-1)
        return outputs

    faulty = FaultyEngine(engine, artifact, Fault("late", "step", "", late))
    accuracy, _ = judge_engine(artifact, faulty, selected={name})
    assert accuracy.verdict == "fail"
    assert {"task.times", "task.tokens"} <= failed(accuracy)


def test_wrong_shape_is_a_failure_that_says_so(artifact: Artifact, engine: Engine) -> None:
    class Cut(FaultyEngine):
        def run(self, graph, inputs):  # noqa: ANN001, ANN202
            outputs = super().run(graph, inputs)
            return {**outputs, "hidden": outputs["hidden"][:, :-1]} if graph == "encoder" else outputs

    faulty = Cut(engine, artifact, Fault("none", "no graph", "", lambda run, inputs: run(inputs)))
    accuracy, _ = judge_engine(artifact, faulty, selected={"speech"})
    gate = next(gate for gate in accuracy.gates if gate.name == "structure.relative_l2")
    assert gate.passed is False
    assert "shape [1, " in gate.where


def test_a_graph_that_raises_is_blocked_not_passed(artifact: Artifact, engine: Engine) -> None:
    def refuse(_run: RunGraph, _inputs: Arrays) -> Arrays:
        raise RuntimeError("no kernel\nfor it")

    accuracy = judged(artifact, engine, Fault("no kernel", "step", "", refuse))
    assert accuracy.verdict == "blocked"
    assert {case.blocked for case in accuracy.cases} == {"RuntimeError: no kernel for it"}
    assert accuracy.teacher_forced[0].blocked
    assert accuracy.recordings[0].blocked


def test_built_in_controls_are_all_caught(artifact: Artifact, engine: Engine) -> None:
    accuracy, _ = judge_engine(artifact, engine, selected=select(artifact, None), controls=True)
    assert accuracy.verdict == "pass", accuracy.reason
    assert [control.name for control in accuracy.controls] == [fault.name for fault in faults(artifact)]
    assert all(control.caught for control in accuracy.controls)
    assert next(gate for gate in accuracy.gates if gate.name == "controls.missed").value == 0


def test_a_control_that_changes_nothing_fails_the_verdict(
    artifact: Artifact, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmless = Fault("harmless", "step", "structure", lambda run, inputs: run(inputs))
    monkeypatch.setattr("verify.families.whisper.faults", lambda _: (harmless,))
    accuracy, _ = judge_engine(artifact, engine, selected={"step_4"}, controls=True)
    assert accuracy.verdict == "fail"
    assert failed(accuracy) == {"controls.missed"}


def test_truncated_golden_file(pocket_artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pocket_artifact, tmp_path / "fp32"))
    golden = copy / "golden.safetensors"
    golden.write_bytes(golden.read_bytes()[:-4])
    with pytest.raises(DamagedArtifactError, match=r"golden\.safetensors"):
        verify_artifact(copy)
    assert not (copy / "results").exists()


def resealed(artifact: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's content and give it the digests that fit."""
    raw = json.loads((artifact / MANIFEST_NAME).read_text())
    change(raw["content"])
    content, record = Content.model_validate(raw["content"]), ExportRecord.model_validate(raw["export"])
    (artifact / MANIFEST_NAME).write_bytes(Manifest.create(content, record).to_bytes())


@pytest.mark.parametrize("change", ["missing", "short"])
def test_golden_that_does_not_fit_its_manifest(pocket_artifact: Path, tmp_path: Path, change: str) -> None:
    """An export that wrote too little, sealed with the right hashes."""
    copy = Path(shutil.copytree(pocket_artifact, tmp_path / "fp32"))

    def misplace(content: dict[str, Any]) -> None:
        case = next(case for case in content["cases"] if case["name"] == "step_4")
        case["outputs"]["logits"]["key"] = "nowhere" if change == "missing" else "prefill_1/logits"

    resealed(copy, misplace)
    if change == "missing":
        with pytest.raises(DamagedArtifactError, match="nowhere"):
            verify_artifact(copy, engines=["onnxruntime"], cases=["step_4"], runs=0)
    else:
        result = verify_artifact(copy, engines=["onnxruntime"], cases=["step_4"], runs=0)
        assert result.verdict == "fail"
        assert "golden [1, 2, " in result.summary


def test_a_graph_without_a_case_is_blocked(pocket_artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pocket_artifact, tmp_path / "fp32"))

    def forget(content: dict[str, Any]) -> None:
        content["cases"] = [case for case in content["cases"] if case["graph"] != "prefill_32"]

    resealed(copy, forget)
    result = verify_artifact(copy, engines=["onnxruntime"], runs=0)
    assert result.verdict == "blocked"
    assert "prefill_32/none" in result.summary


def test_rows_that_must_not_be_read_hold_garbage(artifact: Artifact) -> None:
    case = next(case for case in artifact.content.cases if case.name == "step_4")
    inputs = Golden(artifact).inputs(case)
    spec = next(spec for spec in artifact.content.graphs["step"].inputs if spec.name == "self_k_0")
    assert inputs["self_k_0"].shape == spec.shape
    assert np.abs(inputs["self_k_0"][:, :, :4]).max() < 1e3
    assert (inputs["self_k_0"][:, :, 4:] == 1e4).all()
