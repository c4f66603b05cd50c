"""A whole export of sound-event models: what is in the folder, that it repeats, and that a wrong one is refused."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import atlasport
from safetensors.torch import load_file
from sed_checkpoints import sed_state, write_sed_checkpoint

from export.families.cnn8rnn.checkpoint import Cnn8RnnCheckpoint
from export.families.cnn8rnn.model import Cnn8RnnModel
from export.families.cnn8rnn.source import SourceCnn8Rnn
from export.pipeline import DTYPES, export_model
from export.registry import REPOSITORY_ROOT
from runtime.artifact import open_artifact
from runtime.errors import GateError, InputError
from runtime.manifest import Recording, Variant

SAMPLES = REPOSITORY_ROOT / "samples"
POCKET = REPOSITORY_ROOT / "pocket" / "sed-pocket"


def test_the_manifest_describes_graphs_of_open_length(sed_artifact: Path):
    content = open_artifact(sed_artifact).content
    assert (content.family, content.task) == ("cnn8rnn", "sound-event-detection")
    source = content.source
    assert (source.weights, source.origin, source.licence) == ("trained", "pocket/sed-pocket", "apache-2.0")
    assert set(source.files) == {"config.json", "classes.txt", "model.safetensors"}
    for name, digest in source.files.items():
        assert digest == hashlib.sha256((POCKET / name).read_bytes()).hexdigest()
    shapes = {
        graph: {spec.name: (spec.dtype, spec.shape) for spec in (*signature.inputs, *signature.outputs)}
        for graph, signature in content.graphs.items()
    }
    assert shapes == {
        "frontend": {"audio": ("float32", (1, "n_samples")), "logmel": ("float32", (1, 64, "n_frames"))},
        "gates": {"logmel": ("float32", (1, 64, "n_frames")), "gates": ("float32", (1, 2, "n_scores", 96))},
        "recurrence": {
            "gates": ("float32", (1, 2, 50, 96)),
            "h": ("float32", (2, 1, 32)),
            "states": ("float32", (1, 2, 50, 32)),
            "new_h": ("float32", (2, 1, 32)),
        },
        "head": {"states": ("float32", (1, 2, "n_scores", 32)), "logits": ("float32", (1, "n_scores", 8))},
    }
    assert content.graphs["recurrence"].files == {"onnx": "recurrence.onnx", "torchscript": "model.ts"}
    assert (sed_artifact / "classes.txt").read_bytes() == (POCKET / "classes.txt").read_bytes()


def test_golden_cases_have_many_lengths_and_are_the_source_s(sed_artifact: Path):
    content = open_artifact(sed_artifact).content
    golden = load_file(sed_artifact / "golden.safetensors")
    samples = {
        case.name: golden[case.inputs["audio"].key].shape[1] for case in content.cases if case.graph == "frontend"
    }
    assert {"silence_audio", "noise_audio", "speech_audio", "sounds_audio"} <= samples.keys()
    assert {960, 9600, 320_000} <= set(samples.values())
    assert len(set(samples.values())) == len(samples)
    for case in content.cases:
        if case.graph == "head":
            n_frames = golden[f"{case.name}_audio/logmel"].shape[2]
            assert golden[case.outputs["logits"].key].shape == (1, n_frames // 4, 8)
    begins = {case.name: golden[case.inputs["h"].key] for case in content.cases if case.graph == "recurrence"}
    assert [name for name, h in begins.items() if not h.any()] == ["speech_steps_1", "sounds_steps_1"]
    for name in ("speech", "sounds"):
        assert torch.equal(begins[f"{name}_steps_2"], golden[f"{name}_steps_1/new_h"])
    assert {(parity.case, parity.output) for parity in content.parity.outputs} == {
        (case.name, output) for case in content.cases for output in case.outputs
    }
    assert max(parity.relative_l2 for parity in content.parity.outputs) < 1e-5
    assert content.parity.results_equal == {"sed_1": True, "sed_2": True, "sed_3": True}


@pytest.mark.parametrize("name", ["sed_1", "sed_2"])
def test_what_is_annotated_is_heard(name: str, sed_artifact: Path):
    recordings = {recording.name: recording for recording in open_artifact(sed_artifact).content.recordings}
    reference, result = recordings[name].reference, recordings[name].result
    assert reference is not None
    assert [event["label"] for event in result["events"]] == [event["label"] for event in reference["events"]]
    for heard, said in zip(result["events"], reference["events"], strict=True):
        assert abs(heard["onset"] - said["onset"]) <= 0.05
        assert abs(heard["offset"] - said["offset"]) <= 0.05
    present = {event["label"] for event in reference["events"]}
    assert {tag["label"] for tag in result["tags"][: len(present)]} == present


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_lower_precision_is_cast_and_keeps_the_fp32_golden(variant: Variant, sed_artifact: Path, tmp_path: Path):
    folder = export_model("sed-pocket", variant=variant, formats=("onnx", "torchscript"), out=tmp_path)
    content = open_artifact(folder).content
    found = load_file(folder / "weights.safetensors")
    for name, tensor in load_file(sed_artifact / "weights.safetensors").items():
        # All but the first convolution, whose input has the range of dB.
        dtype = torch.float32 if name.startswith("conv_block1.conv1.") else DTYPES[variant]
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor.to(dtype)), name
    assert (folder / "golden.safetensors").read_bytes() == (sed_artifact / "golden.safetensors").read_bytes()
    frontend, recurrence = content.graphs["frontend"], content.graphs["recurrence"]
    half = {"fp16": "float16", "bf16": "bfloat16"}[variant]
    assert [spec.dtype for spec in (*frontend.inputs, *frontend.outputs)] == ["float32", "float32"]
    assert {spec.dtype for spec in (*recurrence.inputs, *recurrence.outputs)} == {half}
    ends = content.graphs["gates"].inputs[0], content.graphs["head"].outputs[0]
    assert [spec.dtype for spec in ends] == ["float32", "float32"]


@pytest.mark.slow
def test_a_checkpoint_of_the_user_with_the_hub_s_config(tmp_path: Path):
    folder = write_sed_checkpoint(tmp_path / "checkpoint", sed_state(), "pytorch_model.bin")
    clip = SAMPLES / "sed_3.flac"
    content = open_artifact(
        export_model("mine", weights=str(folder), formats=("onnx",), out=tmp_path / "out", recordings=[clip])
    ).content
    assert (content.model, content.family, content.source.origin) == ("mine", "cnn8rnn", "checkpoint")
    assert [recording.name for recording in content.recordings] == ["sed_3"]
    assert content.parity.results_equal == {"sed_3": True}


def test_a_weight_that_fp16_cannot_hold_is_refused(tmp_path: Path):
    state = sed_state()
    # Finite, but not once the normalisation is folded into it.
    state["conv_block3.conv1.weight"][0] = 300.0
    state["conv_block3.bn1.running_var"][0] = 1e-9
    folder = write_sed_checkpoint(tmp_path / "checkpoint", state)
    with pytest.raises(InputError, match=r"conv_block3\.conv1\.weight leaves the range of torch\.float16"):
        export_model("mine", weights=str(folder), variant="fp16", formats=("onnx",), out=tmp_path / "out")


class _Faulty(Cnn8RnnModel):
    """One weight off by a thousandth."""

    def read(self, name: str) -> torch.Tensor:
        tensor = super().read(name)
        return tensor * 1.001 if name == "conv_block4.conv2.weight" else tensor


class _WithoutShift(Cnn8RnnModel):
    """The means of a normalisation forgotten when it is folded."""

    def read(self, name: str) -> torch.Tensor:
        tensor = super().read(name)
        return torch.zeros_like(tensor) if name == "conv_block2.conv1.bias" else tensor


@pytest.mark.parametrize("fault", [_Faulty, pytest.param(_WithoutShift, marks=pytest.mark.slow)])
def test_graphs_that_do_not_compute_what_the_source_does_are_not_exported(
    fault: type[Cnn8RnnModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("export.families.cnn8rnn.model.Cnn8RnnModel", fault)
    with pytest.raises(GateError, match=r"output gates: relative L2 .* limit 0\.0001"):
        export_model("sed-pocket", formats=("onnx",), out=tmp_path)
    assert not (tmp_path / "sed-pocket").exists()


def _event(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    return lambda result: change(result["events"][1])


@pytest.mark.parametrize(
    "change",
    [
        _event(lambda event: event.update(label="Chirp up")),
        _event(lambda event: event.update(onset=event["onset"] + 0.04)),
        _event(lambda event: event.update(offset=event["offset"] - 0.04)),
        _event(lambda event: event.update(score=event["score"] - 0.01)),
        lambda result: result["events"].pop(),
        lambda result: result["tags"].reverse(),
    ],
    ids=["label", "onset", "offset", "score", "missing", "tags"],
)
def test_the_source_disagrees_with_another_result(change: Callable[[dict[str, Any]], None], sed_artifact: Path):
    source = SourceCnn8Rnn(Cnn8RnnCheckpoint(POCKET))
    recording = open_artifact(sed_artifact).content.recordings[0]
    path = SAMPLES / "sed_1.flac"
    assert source.agrees(path, recording)
    changed = Recording.model_validate_json(recording.model_dump_json())
    change(changed.result)
    assert not source.agrees(path, changed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_full_size_is_exported_with_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ("--weights", "random", "--formats", "onnx,torchscript,pt2", "--out", tmp_path)
    done = atlasport("export", "cnn8rnn-audioset-sed", *options)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "cnn8rnn-audioset-sed" / "fp32"
    manifest = open_artifact(folder).manifest
    stages = manifest.export.stages
    with capsys.disabled():
        for stage in stages:
            sys.stdout.write(f"\n{stage.stage:14} {stage.cpu_s:6.1f} CPU-s {stage.peak_rss / 1e9:6.2f} GB")
    assert [stage.stage for stage in stages] == [
        "weights",
        "onnx",
        "torchscript",
        "pt2",
        "golden",
        "source parity",
        "noise floors",
        "manifest",
    ]
    assert max(stage.peak_rss for stage in stages) < 1.5e9
    content = manifest.content
    assert (content.source.weights, content.source.seed) == ("random", 0)
    assert max(parity.relative_l2 for parity in content.parity.outputs) <= 1e-5
    assert content.parity.results_equal == {"jfk": True}
    assert len((folder / "classes.txt").read_text().splitlines()) == 447
    # Scores of all sizes, and events to compare: random weights are good for parity.
    golden = load_file(folder / "golden.safetensors")
    logits = golden[next(case for case in content.cases if case.name == "speech").outputs["logits"].key]
    assert logits.std(dim=1).mean() > 0.5
    assert logits.mean(dim=1).std() > 0.5
    assert len(content.recordings[0].result["events"]) > 10
