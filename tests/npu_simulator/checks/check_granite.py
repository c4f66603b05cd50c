"""Granite Speech, a random network of two layers, on the simulated device beyond check_families.py.

Lengths are padded to few, and what is copied while an answer is made is counted. Run by
tests/npu/test_simulated_families.py.
"""

from __future__ import annotations

from on_device import ARTIFACT, OTHER, RECORDING, Opened, host_copies, opened
from torch_npu import simulator

from runtime.families.granite_speech.settings import DECODE, ENCODE_PROJECT, PREFILL

pytest_plugins = ("on_device",)


def test_one_small_copy_to_the_host_per_token(on_npu: Opened) -> None:
    for path in (RECORDING, OTHER):
        simulator.clear_record()
        result = on_npu.recognize(path)
        report = simulator.report()
        assert result.steps == 7
        # There: features, ids, the spliced prompt; lengths, tokens and positions are numbers, for which nothing is
        # copied. Back: audio embeddings, text embeddings, and logits per token.
        assert host_copies(report) == {"host_to_device": 3, "device_to_host": 3 + result.steps}
        vocabulary = ARTIFACT.content.dims["n_vocab"]
        assert report["copies"]["device_to_host"]["shapes"][f"Float[1, {vocabulary}]"] == 1 + result.steps
        assert report["synchronizations"].get("item", 0) == 0
        assert not report["fallbacks"]


def test_few_shapes_for_many_lengths() -> None:
    """An NPU compiles for each new shape: prompts and caches of three kinds and lengths share theirs."""
    run = opened("torchscript")
    run.recognize(RECORDING)
    run.recognize(RECORDING, task="punctuate")
    run.recognize(OTHER, task="translate", to="German")
    shapes = run.engine.probe.shapes()
    assert shapes[PREFILL] == shapes[DECODE] == 1
    assert shapes[ENCODE_PROJECT] == 2  # one unit of 120 frames, and two


def test_without_buckets_each_length_is_a_shape() -> None:
    run = opened("torchscript")
    run.recognizer.model._in_buckets = False  # type: ignore[attr-defined]
    run.recognize(RECORDING)
    run.recognize(OTHER)
    assert run.engine.probe.shapes()[PREFILL] == 2
