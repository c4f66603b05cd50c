"""A whole export of a Parakeet-TDT: what is in the folder, that it repeats, and that a wrong one is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import atlasport
from parakeet_checkpoints import POCKET_NEMO, pocket_members
from safetensors.torch import load_file

from export.families.parakeet_tdt.model import ParakeetModel
from export.families.parakeet_tdt.source import SourceParakeet
from export.golden import Clip, Golden
from export.parity import source_parity
from export.pipeline import export_model
from export.weights import resolve_weights
from runtime.artifact import open_artifact
from runtime.errors import GateError

GRAPHS = {"frontend", "encoder", "step", "join", "decode_8", "decode_32"}


def test_the_manifest_describes_graphs_of_open_length(parakeet_artifact: Path):
    content = open_artifact(parakeet_artifact).content
    assert (content.family, content.task) == ("parakeet_tdt", "automatic-speech-recognition")
    source = content.source
    assert (source.weights, source.origin, source.licence) == ("trained", "pocket/parakeet-pocket.nemo", "apache-2.0")
    assert source.files == {POCKET_NEMO.name: hashlib.sha256(POCKET_NEMO.read_bytes()).hexdigest()}
    assert content.graphs.keys() == GRAPHS
    shapes = {
        name: {spec.name: (spec.dtype, spec.shape) for spec in (*graph.inputs, *graph.outputs)}
        for name, graph in content.graphs.items()
    }
    assert shapes["frontend"]["features"] == ("float32", ("batch", 128, "n_frames"))
    assert shapes["encoder"]["frames"] == ("float32", ("batch", "n_enc", 128))
    assert shapes["step"]["new_h"] == ("float32", (2, "batch", 96))
    assert shapes["decode_8"]["tokens"] == ("int64", ("batch", 8))
    assert shapes["decode_32"]["logit"] == ("float32", ("batch", 32))
    model = next(data for name, data in pocket_members().items() if name.endswith("_tokenizer.model"))
    assert (parakeet_artifact / "tokenizer.model").read_bytes() == model


def test_golden_cases_cover_every_graph_and_are_the_source_s(parakeet_artifact: Path):
    content = open_artifact(parakeet_artifact).content
    golden = load_file(parakeet_artifact / "golden.safetensors")
    assert {case.graph for case in content.cases} == GRAPHS
    audio = {case.name: golden[case.inputs["audio"].key] for case in content.cases if case.graph == "frontend"}
    assert {"speech_audio", "silence_audio", "noise_audio", "shortest_audio", "odd_audio", "batch_audio"} <= set(audio)
    assert (audio["shortest_audio"].shape[1], len(audio["batch_audio"])) == (160, 3)
    assert not audio["silence_audio"].any()
    # Beyond the end of a recording of a batch stands what must not be read.
    assert float(audio["batch_audio"][2, 160:].min()) == float(golden["batch/features"][2, :, 1:].min()) == 3.0
    assert not golden["batch/frames"][2, 1:].any()
    for name in ("decode_8_start", "decode_32_middle"):
        assert int((golden[f"{name}/tokens"] >= 0).sum()) >= 3, name
    assert golden["step_middle/h"].abs().max() > 0.1
    assert content.parity.implementation.startswith("transformers ")
    assert max(parity.relative_l2 for parity in content.parity.outputs) < 5e-5
    assert len(content.parity.outputs) == sum(len(case.outputs) for case in content.cases)
    assert set(content.parity.results_equal.values()) == {True}
    assert {recording.name for recording in content.recordings} == content.parity.results_equal.keys()


def _wrong_blank(source: SourceParakeet) -> None:
    row = source.decoder.joint["head"].weight
    row[[0, source.dims.blank]] = row[[source.dims.blank, 0]].clone()


def _wrong_positions(source: SourceParakeet) -> None:
    source.encoder.encode_positions.register_forward_hook(lambda _module, _inputs, output: output.roll(1, dims=1))


def _wrong_durations(source: SourceParakeet) -> None:
    source._settings = source._settings.model_copy(update={"durations": (1, 2, 3, 4, 0)})


def _wrong_window(source: SourceParakeet) -> None:
    source.front.window = torch.hann_window(len(source.front.window), periodic=True)


@pytest.mark.parametrize(
    ("fault", "output"),
    [
        (_wrong_blank, "logit|token"),
        (_wrong_positions, "frames"),
        (_wrong_durations, "durations|new_t|at|token"),
        (_wrong_window, "features"),
    ],
)
def test_parity_finds_a_difference(parakeet_artifact: Path, fault: Callable[[SourceParakeet], None], output: str):
    content = open_artifact(parakeet_artifact).content
    arrays = {key: tensor.numpy() for key, tensor in load_file(parakeet_artifact / "golden.safetensors").items()}
    golden = Golden(arrays=arrays, cases=[case for case in content.cases if not case.name.startswith("noise")])
    source = ParakeetModel(resolve_weights("parakeet-pocket", None)).source(parakeet_artifact / "weights.safetensors")
    assert isinstance(source, SourceParakeet)
    clips: list[Clip] = []
    source_parity(golden, source, clips, "pocket")
    fault(source)
    with pytest.raises(GateError, match=f"output .*({output})") as caught:
        source_parity(golden, source, clips, "pocket")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_half_precision_exports(tmp_path: Path, variant: str):
    folder = export_model("parakeet-pocket", variant=variant, formats=("torchscript",), out=tmp_path)  # type: ignore[arg-type]
    content = open_artifact(folder).content
    assert {spec.dtype for spec in content.graphs["encoder"].inputs if spec.name == "features"} == {"float32"}
    assert {tensor.dtype for tensor in load_file(folder / "weights.safetensors").values()} == {
        {"fp16": torch.float16, "bf16": torch.bfloat16}[variant]
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_full_size_export_holds_one_copy_of_the_weights(tmp_path: Path):
    options = ("--weights", "random", "--formats", "onnx", "--out", tmp_path)
    done = atlasport("export", "parakeet-tdt-0.6b-v2", *options)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "parakeet-tdt-0.6b-v2" / "fp32"
    stages = {stage.stage: stage for stage in open_artifact(folder).manifest.export.stages}
    # The graphs cost no copy of the weights. Golden outputs and their comparison read all of them, 2.5 GB.
    assert stages["onnx"].peak_rss < 1e9
    assert max(stage.peak_rss for stage in stages.values()) < 3.6e9
