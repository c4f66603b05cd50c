"""Granite Speech on the simulated device, by the engine itself; run by tests/npu/test_simulated_families.py.

The checks of `check_families` that hold for any family run here with a random network of two layers; beside them stands
what is its own: lengths that are padded to few, and what is copied while an answer is made.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from check_families import (  # the fixtures run by their names
    ARTIFACTS,
    ENGINES,
    Opened,
    alike,
    devices_in_program,
    devices_in_script,
    healthy,
    host_copies,
    nodes_of_program,
    on_npu,
    opened,
    said,
    shared,
    verdict,
)
from npu_simulator import ROOT
from torch_npu import simulator

from runtime.artifact import open_artifact
from runtime.families.granite_speech.settings import DECODE, ENCODE_PROJECT, PREFILL

__all__ = ["healthy", "on_npu"]

CLIP, OTHER = ROOT / "samples" / "short_en.wav", ROOT / "samples" / "short_de.wav"
# Make tensors out of nothing, on a device that they have to be told.
FACTORIES = {"arange", "zeros", "ones", "full", "empty", "scalar_tensor", "eye", "tensor", "linspace"}


def test_it_says_what_the_cpu_says(on_npu: Opened) -> None:
    """By TorchScript, whose prompt, cache and audio are not padded there."""
    on_cpu = shared(on_npu.artifact.path, "torchscript", "cpu")
    for path in (CLIP, OTHER):
        expected = said(on_cpu.recognize(path)) | {"engine": on_npu.engine.name}
        assert expected["segments"][0]["tokens"]
        found = said(on_npu.recognize(path))
        for result in (found, expected):
            del result["tokens_per_s"]
        assert alike(found, expected)
    assert not alike(said(on_npu.recognize(CLIP))["text"], expected["text"])  # the comparison can tell


def test_no_graph_holds_a_device_or_a_factory() -> None:
    artifact = open_artifact(ARTIFACTS[0])
    graphs = artifact.content.graphs.values()
    script = artifact.file(next(iter(graphs)).files["torchscript"])
    programs = [artifact.file(graph.files["pt2"]) for graph in graphs]
    assert not devices_in_script(script)
    assert not [found for program in programs for found in devices_in_program(program)]
    assert not factories_of(script)
    assert not [found for program in programs for found in factories_of(program)]


def factories_of(file: Path) -> set[str]:
    """The factories that a TorchScript file or a program calls."""
    if file.suffix == ".pt2":
        names = {node["target"] for node in nodes_of_program(file)}
        return {name for name in names if name.split(".")[-2] in FACTORIES}
    script = torch.jit.load(file, map_location="cpu")
    methods = [script._c._get_method(method) for method in script._c._method_names()]
    kinds = {node.kind() for method in methods for node in method.inlined_graph.nodes()}
    return {kind for kind in kinds if kind.removeprefix("aten::") in FACTORIES}


def test_a_factory_shows(tmp_path: Path) -> None:
    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(x.shape[0], device=x.device)

    x, length = torch.zeros(3), torch.export.Dim("length", min=2)
    torch.jit.save(torch.jit.trace(Counting(), x), tmp_path / "model.ts")
    torch.export.save(torch.export.export(Counting(), (x,), dynamic_shapes=({0: length},)), tmp_path / "model.pt2")
    assert factories_of(tmp_path / "model.ts") == {"aten::arange"}
    assert any("arange" in name for name in factories_of(tmp_path / "model.pt2"))


def test_one_small_copy_to_the_host_per_token(on_npu: Opened) -> None:
    for path in (CLIP, OTHER):
        simulator.clear_record()
        result = on_npu.recognize(path)
        report = simulator.report()
        assert result.steps == 7
        # There: features, ids, the spliced prompt; lengths, tokens and positions are numbers, for which nothing is
        # copied. Back: audio embeddings, text embeddings, and logits per token.
        assert host_copies(report) == {"host_to_device": 3, "device_to_host": 3 + result.steps}
        vocabulary = on_npu.artifact.content.dims["n_vocab"]
        assert report["copies"]["device_to_host"]["shapes"][f"Float[1, {vocabulary}]"] == 1 + result.steps
        assert report["synchronizations"].get("item", 0) == 0
        assert not report["fallbacks"]


def test_few_shapes_for_many_lengths() -> None:
    """An NPU compiles for each new shape: prompts and caches of three kinds and lengths share theirs."""
    run = opened(ARTIFACTS[0], "torchscript")
    run.recognize(CLIP)
    run.recognize(CLIP, task="punctuate")
    run.recognize(OTHER, task="translate", to="German")
    shapes = run.engine.probe.shapes()
    assert shapes[PREFILL] == shapes[DECODE] == 1
    assert shapes[ENCODE_PROJECT] == 2  # one unit of 120 frames, and two


def test_without_buckets_each_length_is_a_shape() -> None:
    run = opened(ARTIFACTS[0], "torchscript")
    run.recognizer.model._in_buckets = False  # type: ignore[attr-defined]
    run.recognize(CLIP)
    run.recognize(OTHER)
    assert run.engine.probe.shapes()[PREFILL] == 2


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("operator", ["aten::glu", "aten::rsqrt"])
def test_an_operator_that_the_device_lacks_fails_by_name(name: str, operator: str) -> None:
    """One of the encoder, one of the language model."""
    run = shared(ARTIFACTS[0], name)
    simulator.apply({"deny": [operator]})
    with pytest.raises(Exception, match=operator.removeprefix("aten::")):
        run.recognize(CLIP)


MATMULS = "aten::(matmul|mm|bmm|addmm|linear)"


@pytest.mark.parametrize(
    ("operators", "kind", "amount", "gate"),
    [
        ("aten::convolution", "gain", 1.01, "structure"),
        (MATMULS, "hf32", 0.0, "structure"),
        (MATMULS, "fp16", 0.0, "structure"),
        ("aten::rsqrt", "gain", 1.001, "structure"),
        ("aten::silu", "gain", 1.01, "structure"),
        ("aten::native_layer_norm", "nan", 0.0, "overflow"),
        ("aten::(softmax|_softmax)", "nan", 0.0, "overflow"),
    ],
)
def test_a_numeric_fault_above_tolerance_fails(operators: str, kind: str, amount: float, gate: str) -> None:
    found, gates = verdict(shared(ARTIFACTS[0], "torchscript"), operators, kind, amount)
    assert found == "fail"
    assert gate in gates


def test_a_numeric_fault_below_tolerance_passes() -> None:
    assert verdict(shared(ARTIFACTS[0], "torchscript"), "aten::rsqrt", "gain", 1 + 1e-6) == ("pass", set())
