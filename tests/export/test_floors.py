"""Noise floors: float64 by another way, the source in two processes, pools, and what the manifest keeps of them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from export.families import open_model
from export.floors import Measured, add_float64, pair_errors
from export.golden import Golden
from export.other_kernels import Job, measure_elsewhere
from export.weights import resolve_weights
from runtime.artifact import Artifact, open_artifact
from runtime.engines import open_engine
from runtime.errors import EnvironmentNotFitError
from runtime.golden import Golden as StoredGolden
from runtime.manifest import Case, Content, GoldenInput, GoldenOutput


@pytest.fixture(scope="module")
def artifact(pocket_artifact: Path) -> Artifact:
    return open_artifact(pocket_artifact)


def golden_of(artifact: Artifact, *names: str) -> Golden:
    stored = StoredGolden(artifact)
    cases = [case for case in artifact.content.cases if case.name in names]
    keys = {part.key for case in cases for part in (*case.inputs.values(), *case.outputs.values())}
    return Golden(arrays={key: stored.array(key) for key in keys}, cases=cases)


def test_what_the_manifest_keeps(artifact: Artifact) -> None:
    content = artifact.content
    tolerances = content.tolerances
    transformers_name, _, elsewhere = tolerances.implementations
    assert transformers_name == f"transformers {transformers.__version__}"
    assert elsewhere.startswith(f"{transformers_name}, kernels held to ")
    pools = {stored.pool for case in content.cases for stored in case.outputs.values()}
    assert pools == set(tolerances.floors)
    # Encoders by case and kind of output, decoders over all cases of a graph whatever its length, logits in one pool.
    assert {"encoder/speech cross_k", "encoder/silence hidden", "prefill new_self_v", "logits"} <= pools
    assert all(stored.logits == (name == "logits") for case in content.cases for name, stored in case.outputs.items())
    # What parity measured of the source is one of the floors.
    for parity in content.parity.outputs:
        case = next(case for case in content.cases if case.name == parity.case)
        if parity.output != "logits":
            floor = tolerances.floors[case.outputs[parity.output].pool]
            assert floor["relative_l2"] >= 0.999 * parity.relative_l2
    decisions = tolerances.decisions["tokens"]
    [run] = content.teacher_forced
    assert (decisions.positions, decisions.flips) == (len(run.tokens) - run.prompt, 0)
    assert 0 < decisions.pair_error < 1e-4


def test_float64_is_that_of_modules_that_hold_doubles(artifact: Artifact, pocket_checkpoint: Path) -> None:
    model = open_model(resolve_weights("whisper-pocket", str(pocket_checkpoint)))[1]
    definitions = model.graphs(torch.float32, artifact.file("weights.safetensors"))
    golden = golden_of(artifact, "silence", "step_4")
    measured = Measured()
    add_float64(measured, golden, artifact.content.graphs, definitions)
    assert torch.zeros(1).dtype == torch.float32
    for name, graph in (("silence", "encoder"), ("step_4", "step")):
        case = next(case for case in golden.cases if case.name == name)
        inputs = [StoredGolden(artifact).inputs(case)[spec.name] for spec in definitions[graph].inputs]
        tensors = [torch.from_numpy(x) for x in inputs]
        with torch.no_grad():
            outputs = definitions[graph].module.double()(*(x.double() if x.is_floating_point() else x for x in tensors))
        definitions[graph].module.float()
        for spec, output in zip(definitions[graph].outputs, outputs, strict=True):
            stored = case.outputs[spec.name]
            if stored.logits or stored.stride > 1:
                continue
            expected = golden.arrays[stored.key].astype(np.float64)
            error = np.linalg.norm(output.numpy() - expected) / np.linalg.norm(expected)
            assert 0 < error <= measured.floors[stored.pool]["relative_l2"] * (1 + 1e-6)


def test_kernels_of_another_processor_are_measured(artifact: Artifact, pocket_checkpoint: Path, tmp_path: Path) -> None:
    golden = golden_of(artifact, "silence")
    arrays = tmp_path / "golden.safetensors"
    golden.write(arrays)
    job = Job(
        weights=resolve_weights("whisper-pocket", str(pocket_checkpoint)),
        weights_file=artifact.file("weights.safetensors"),
        arrays=arrays,
        cases=golden.cases,
        teacher_forced=[],
        graphs=artifact.content.graphs,
        dtype=torch.float32,
    )
    before = dict(os.environ)
    measured = measure_elsewhere(job)
    assert dict(os.environ) == before
    assert set(measured.floors) == {"encoder/silence hidden", "encoder/silence cross_k", "encoder/silence cross_v"}
    for values in measured.floors.values():
        assert 0 < values["relative_l2"] < 1e-5
    with pytest.raises(EnvironmentNotFitError, match=r"^floors: expected the source to run with .*, found .*nowhere"):
        measure_elsewhere(replace(job, arrays=tmp_path / "nowhere"))


def one_case(outputs: dict[str, np.ndarray]) -> Golden:
    stored = {name: GoldenOutput(key=name, pool=name, logits=name == "logits") for name in outputs}
    case = Case(name="c", graph="g", note="", inputs={"x": GoldenInput(key="x")}, outputs=stored)
    return Golden(arrays=outputs, cases=[case])


def test_the_largest_distance_is_the_floor() -> None:
    golden = one_case({"y": np.array([[3.0, 4.0]])})
    measured = Measured()
    for error in (0.01, 0.05, 0.02):
        measured.add(golden, golden.cases[0], {"y": np.array([[3.0, 4.0 + error]])})
    other = Measured(implementations=["another"])
    other.add(golden, golden.cases[0], {"y": np.array([[3.0, 4.1]])})
    assert measured.floors["y"]["relative_l2"] == pytest.approx(0.01)
    measured.include(other)
    assert measured.floors["y"]["relative_l2"] == pytest.approx(0.02)
    assert measured.implementations == ["another"]


def test_what_follows_from_another_choice_is_no_rounding() -> None:
    golden = one_case({"token": np.array([7]), "y": np.array([[1.0, 2.0]])})
    measured = Measured()
    measured.add(golden, golden.cases[0], {"token": np.array([8]), "y": np.array([[9.0, 2.0]])})
    assert measured.floors == {}
    measured.add(golden, golden.cases[0], {"token": np.array([7]), "y": np.array([[1.0, 2.0]])})
    assert set(measured.floors) == {"y"}


def test_pair_errors_by_hand() -> None:
    golden = np.array([[5.0, 4.0, -20.0], [1.0, 3.0, 2.5]], np.float32)
    found = np.array([[5.2, 4.5, 90.0], [1.0, 2.9, 2.6]], np.float32)
    # The third of the first row is no candidate; a shift of a row is no error.
    np.testing.assert_allclose(pair_errors(golden, found), [0.3, 0.2], atol=1e-6)
    np.testing.assert_allclose(pair_errors(golden, found + 4), [0.3, 0.2], atol=1e-5)


@pytest.mark.slow
def test_an_artifact_of_two_precisions_has_the_rules_of_both(sed_fp16_artifact: Path) -> None:
    content: Content = open_artifact(sed_fp16_artifact).content
    assert list(content.tolerances.rules) == ["fp16", "fp32"]
    floors = content.tolerances.floors
    assert floors["frontend logmel"]["relative_l2"] < 1e-5 < floors["recurrence/speech_steps_1 states"]["relative_l2"]


def test_margins_of_a_recording_by_the_logits_of_its_prefill(artifact: Artifact) -> None:
    """The first choice of short_en, once more by hand: the gap between the two best candidates that are allowed."""
    recording = next(recording for recording in artifact.content.recordings if recording.name == "short_en")
    [segment] = recording.result["segments"]
    tokens, settings = segment["tokens"], artifact.content.settings
    assert recording.margins is not None
    start, first, *_ = margins = recording.margins["tokens"]
    assert len(margins) == len(tokens) + 3  # start and end of the only segment, and that nothing follows
    assert min(margins) > 0
    assert start > 1e9  # without timestamps it is the window's
    prompt = [settings["sot"], settings["languages"]["en"], settings["tasks"]["transcribe"], settings["no_timestamps"]]
    window = next(case for case in artifact.content.cases if case.name == "short_en_window")
    golden, engine = StoredGolden(artifact), open_engine(artifact, "onnxruntime", threads=1)
    cross = {n: golden.output(stored) for n, stored in window.outputs.items() if n.startswith("cross_")}
    inputs = {"tokens": np.array([prompt]), "rows": np.array([0, 3]), **cross}
    logits = engine.run("prefill_4", inputs)["logits"][0, 1].copy()
    engine.close()
    logits[[*settings["suppress_tokens"], *settings["begin_suppress_tokens"]]] = -np.inf
    second, best = np.sort(logits)[-2:]
    assert int(logits.argmax()) == tokens[0]
    # The window's case is silence behind the recording, the recogniser's features are zero there.
    assert first == pytest.approx(best - second, abs=0.1)
