"""Granite Speech with random weights: the pocket size in every form, and what an export of the full one takes."""

from __future__ import annotations

import os
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from export.families.granite_speech.model import GraniteModel
from export.families.granite_speech.modules import parameter_shapes
from export.families.granite_speech.source import TransformersGranite
from export.pipeline import DTYPES, export_model
from export.registry import REPOSITORY_ROOT, find_model
from export.safetensors_writer import stored_tensors
from export.weights import resolve_weights
from runtime.artifact import open_artifact
from runtime.families.granite_speech.options import GraniteOptions
from runtime.families.granite_speech.prompts import instruction, prompt_text
from runtime.families.granite_speech.settings import GraniteDims, GraniteSettings
from runtime.manifest import Content, Format, Recording, StageCost, Variant

MODEL = "granite-speech-4.1-2b"
# The largest tensor, the embedding, in float32; the bound on what writing ONNX may take.
_EMBEDDING, _ONNX_LIMIT = 100_353 * 2048 * 4, 6e9
# Of a width of 2048, but with the given number of layers in encoder and language model.
_EXPORT = """
import dataclasses
import sys
from pathlib import Path
from export import registry
from export.pipeline import export_model
model, layers, out = sys.argv[1:]
entry = registry.MODELS[model]
if layers:
    dims = {**entry.dims, "enc_layers": int(layers), "lm_layers": int(layers)}
    registry.MODELS[model] = dataclasses.replace(entry, dims=dims)
export_model(model, weights="random", variant="fp16", formats=("onnx",), out=Path(out), progress=print)
"""


def _export(layers: str, out: Path) -> Path:
    """Export in a process of its own, whose memory is the export's alone; all layers where `layers` is empty."""
    command = [sys.executable, "-c", _EXPORT, MODEL, layers, str(out)]
    subprocess.run(command, check=True, cwd=REPOSITORY_ROOT, stdout=sys.stderr)
    return out / MODEL / "fp16"


def _check(content: Content) -> None:
    assert (content.source.weights, content.variant) == ("random", "fp16")
    assert max(parity.relative_l2 for parity in content.parity.outputs) < 1e-4
    assert all(content.parity.results_equal.values())
    # Golden arrays stay small beside the weights: few steps, every seventh frame.
    assert content.files["golden.safetensors"].size < 60e6
    # Graphs of a device are padded to these; the longest is the model's context.
    assert content.settings["cache_lengths"][-1] == content.dims["n_ctx"] == 4096


def test_the_full_size_has_the_published_number_of_parameters():
    entry = find_model(MODEL)
    shapes = parameter_shapes(GraniteDims(**entry.dims))
    folded = {name: shape for name, shape in shapes.items() if name.endswith("depth_conv.conv.bias")}
    # A checkpoint has weight and bias of the normalisation in place of the folded bias.
    assert sum(map(prod, [*shapes.values(), *folded.values()])) == entry.parameters == 2_313_141_596


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_peak_memory_does_not_hold_the_weights(tmp_path: Path):
    folder = _export("2", tmp_path)
    manifest = open_artifact(folder).manifest
    _check(manifest.content)
    stages = {stage.stage: stage for stage in manifest.export.stages}
    weights = sum(info.length for info in stored_tensors(folder / "weights.safetensors").values())
    assert weights > 1e9
    # Two copies of the largest tensor at a time, and what torch itself takes.
    assert stages["weights"].peak_rss < 3 * _EMBEDDING
    for name in ("onnx", "reference onnx"):
        assert stages[name].peak_rss < 0.8e9


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.skipif("GRANITE_FULL_SIZE" not in os.environ, reason="takes 20 GB of disk and half an hour")
def test_the_full_size_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = _export("", tmp_path)
    manifest = open_artifact(folder).manifest
    with capsys.disabled():
        _print(manifest.export.stages)
    _check(manifest.content)
    peaks = {stage.stage: stage.peak_rss for stage in manifest.export.stages}
    assert max(peaks["onnx"], peaks["reference onnx"], peaks["weights"]) < _ONNX_LIMIT


def _print(stages: tuple[StageCost, ...]) -> None:
    for stage in stages:
        sys.stdout.write(f"\n{stage.stage:18} {stage.cpu_s:7.1f} CPU-s {stage.peak_rss / 1e9:6.2f} GB")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", ["fp32", "fp16", "bf16"])
def test_the_pocket_topology_in_every_precision_and_format(variant: Variant, tmp_path: Path):
    formats = get_args(Format)
    folder = export_model("granite-pocket", weights="random", variant=variant, formats=formats, out=tmp_path)
    content = open_artifact(folder).content
    assert (content.source.weights, content.source.seed) == ("random", 0)
    assert {spec.dtype for name in ("features", "logits") for spec in _named(content, name)} == {"float32"}
    half = str(DTYPES[variant]).removeprefix("torch.")
    assert {spec.dtype for name in ("embeds", "k", "new_v", "audio_embeds") for spec in _named(content, name)} == {half}
    assert {tensor.dtype for tensor in load_file(folder / "weights.safetensors").values()} == {DTYPES[variant]}
    for graph in content.graphs.values():
        assert set(graph.files) == set(formats)
        assert all((folder / file).is_file() for file in graph.files.values())
    assert max(parity.relative_l2 for parity in content.parity.outputs) < 5e-5
    assert content.parity.results_equal == {"jfk": True, "jfk_translate": True}
    if variant == "fp32":
        for recording in content.recordings:
            _check_near_ties(folder, content, recording)


def _check_near_ties(folder: Path, content: Content, recording: Recording) -> None:
    """A text of random weights ends before the first choice between two that are all but equal."""
    golden = load_file(folder / "golden.safetensors")
    frames = int(golden["recording_jfk/length"][0])
    source = GraniteModel(resolve_weights("granite-pocket", "random")).source(folder / "weights.safetensors")
    assert isinstance(source, TransformersGranite)
    settings = GraniteSettings.model_validate(content.settings)
    options = GraniteOptions.parse(recording.options)
    (segment,) = recording.result["segments"]
    text = prompt_text(instruction(options), -(-frames // 15) * 3, settings)
    prompt = Tokenizer.from_file(str(folder / settings.tokenizer_file)).encode(text).ids
    features = golden["recording_jfk/features"].reshape(1, -1, 160)[:, :frames]
    with torch.inference_mode():
        logits = source.model(input_ids=torch.tensor([prompt + segment["tokens"]]), input_features=features).logits[0]
    best = logits[len(prompt) - 1 :].topk(2).values
    margins = ((best[:, 0] - best[:, 1]) / logits[len(prompt) - 1 :].std(dim=1)).tolist()
    count = options.max_new_tokens
    assert count == len(segment["tokens"]) + (segment["finish"] == "end")
    assert min(margins[:count]) > 0.0599
    assert count == 16 or margins[count] < 0.0601 or segment["finish"] == "end"


def _named(content: Content, name: str) -> list[Any]:
    """Return the inputs and outputs of that name."""
    return [spec for graph in content.graphs.values() for spec in (*graph.inputs, *graph.outputs) if spec.name == name]
