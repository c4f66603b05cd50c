"""A whole export: what is in the folder, that it is what the checkpoint holds, and that it can be repeated."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from export.pipeline import DTYPES, export_model, parse_formats
from export.registry import REPOSITORY_ROOT
from runtime.artifact import open_artifact
from runtime.errors import GateError, InputError
from runtime.manifest import Variant


def _hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _state_dict(folder: Path) -> dict[str, torch.Tensor]:
    return transformers.WhisperModel.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_the_manifest_lists_every_file_with_its_size_and_hash(pocket_artifact: Path):
    content = open_artifact(pocket_artifact).content
    found = _hashes(pocket_artifact)
    del found["manifest.json"]
    assert {name: entry.sha256 for name, entry in content.files.items()} == found
    assert {name: entry.size for name, entry in content.files.items()} == {
        name: (pocket_artifact / name).stat().st_size for name in found
    }
    graphs = {"frontend", "encoder", "prefill_4", "prefill_32", "prefill_52", "step", "align"}
    assert set(content.graphs) == graphs
    assert all(
        graph.files == {"onnx": f"{name}.onnx", "torchscript": "model.ts"} for name, graph in content.graphs.items()
    )


def test_the_manifest_says_where_the_weights_came_from(pocket_artifact: Path, pocket_checkpoint: Path):
    source = open_artifact(pocket_artifact).content.source
    assert (source.weights, source.origin, source.licence) == ("trained", "pocket/whisper-pocket", "apache-2.0")
    assert (source.repo, source.revision, source.seed) == (None, None, None)
    assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"} <= set(source.files)
    for name, digest in source.files.items():
        assert digest == hashlib.sha256((pocket_checkpoint / name).read_bytes()).hexdigest()


def test_the_weights_are_the_checkpoint_s(pocket_artifact: Path, pocket_checkpoint: Path):
    expected = _state_dict(pocket_checkpoint)
    found = load_file(pocket_artifact / "weights.safetensors")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_cost_of_each_stage_is_recorded(pocket_artifact: Path):
    stages = open_artifact(pocket_artifact).manifest.export.stages
    assert [stage.stage for stage in stages] == [
        "weights",
        "onnx",
        "torchscript",
        "golden",
        "source parity",
        "noise floors",
        "manifest",
    ]
    assert all(stage.cpu_s >= 0 and stage.wall_s > 0 and stage.peak_rss > 50e6 for stage in stages)


@pytest.mark.slow
def test_two_exports_give_the_same_bytes(pocket_artifact: Path, tmp_path: Path):
    again = export_model("whisper-pocket", out=tmp_path)
    first, second = _hashes(pocket_artifact), _hashes(again)
    manifests = [open_artifact(folder).manifest for folder in (pocket_artifact, again)]
    assert manifests[0].content == manifests[1].content
    assert manifests[0].content_sha256 == manifests[1].content_sha256
    for hashes in (first, second):
        del hashes["manifest.json"]
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_lower_precision_is_cast_and_keeps_the_fp32_golden(
    variant: Variant, pocket_artifact: Path, pocket_checkpoint: Path, tmp_path: Path
):
    folder = export_model("whisper-pocket", variant=variant, formats=("onnx",), out=tmp_path)
    content = open_artifact(folder).content
    assert folder == tmp_path / "whisper-pocket" / variant
    found = load_file(folder / "weights.safetensors")
    for name, tensor in _state_dict(pocket_checkpoint).items():
        assert torch.equal(found[name], tensor.to(DTYPES[variant])), name
    assert (folder / "golden.safetensors").read_bytes() == (pocket_artifact / "golden.safetensors").read_bytes()
    assert content.cases == open_artifact(pocket_artifact).content.cases
    assert set(content.tolerances.rules) == {"fp32", variant}
    hidden = content.graphs["encoder"].outputs[0]
    assert hidden.dtype == {"fp16": "float16", "bf16": "bfloat16"}[variant]
    assert {path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")} == {"whisper-pocket"}
    assert not (folder / "reference").exists()


def test_a_weight_that_fp16_cannot_hold_is_refused(pocket_checkpoint: Path, tmp_path: Path):
    model = transformers.WhisperForConditionalGeneration.from_pretrained(pocket_checkpoint)
    with torch.no_grad():
        model.model.encoder.layers[0].fc1.bias[0] = 1e5
    checkpoint = tmp_path / "checkpoint"
    for name in ("preprocessor_config.json", "tokenizer.json"):
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / name).write_bytes((pocket_checkpoint / name).read_bytes())
    model.save_pretrained(checkpoint)
    with pytest.raises(InputError, match=r"encoder\.layers\.0\.fc1\.bias leaves the range of torch\.float16"):
        export_model("my-whisper", weights=str(checkpoint), variant="fp16", formats=("onnx",), out=tmp_path / "out")
    assert not (tmp_path / "out" / "my-whisper").exists()


def test_recordings_of_the_user_become_part_of_the_artifact(random_artifact: Path):
    content = open_artifact(random_artifact).content
    (recording,) = content.recordings
    assert (content.model, content.source.licence) == ("whisper-random", "unknown")
    assert (recording.name, recording.file) == ("short_en", "audio/short_en.wav")
    assert (recording.reference, recording.not_judged) == (None, None)


@pytest.mark.parametrize("names", [("none.wav",), ("pyproject.toml",), ("a/x.wav", "b/x.wav"), ("a/x.wav", "b/x.flac")])
def test_recordings_that_cannot_be_read_or_share_a_name_are_refused(names: tuple[str, ...], tmp_path: Path):
    with pytest.raises(InputError, match=names[0] if len(names) == 1 else "different names"):
        export_model("whisper-pocket", out=tmp_path, recordings=[REPOSITORY_ROOT / name for name in names])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "formats"),
    [
        ("onnx", ("onnx",)),
        ("pt2, onnx", ("onnx", "pt2")),
        ("onnx,torchscript,pt2,onnx", ("onnx", "torchscript", "pt2")),
    ],
)
def test_formats_are_a_list(text: str, formats: tuple[str, ...]):
    assert parse_formats(text) == formats


@pytest.mark.parametrize("text", ["", "onnx,", "om", "onnx;pt2"])
def test_unknown_formats_are_refused(text: str):
    with pytest.raises(InputError, match="expected some of onnx, torchscript, pt2"):
        parse_formats(text)


@pytest.mark.slow
def test_graphs_that_do_not_compute_what_the_source_does_are_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One weight is changed on its way into the artifact; transformers reads the checkpoint itself."""
    from export.families.whisper.model import WhisperModel

    class OneWeightOff(WhisperModel):
        def read(self, name: str) -> torch.Tensor:
            tensor = super().read(name)
            return tensor * 1.001 if name == "decoder.layers.1.fc2.weight" else tensor

    monkeypatch.setattr("export.families.whisper.model.WhisperModel", OneWeightOff)
    with pytest.raises(GateError) as caught:
        export_model("whisper-pocket", formats=("onnx",), out=tmp_path)
    message = str(caught.value)
    assert re.search("output (logits|probabilities|scores): relative L2", message)
    assert "limit 0.0001" in message
    assert [path.name for path in tmp_path.iterdir()] == [".whisper-pocket@fp32.lock"]
