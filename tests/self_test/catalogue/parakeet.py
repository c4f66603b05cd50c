"""Parakeet-TDT: bugs in its modules, in what goes in and out of its graphs, in the pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from export.fastconformer import graphs as graphs_module
from export.fastconformer import modules
from runtime.families.parakeet_tdt import recognizer as recognizer_module
from runtime.manifest import Variant
from self_test.edits import gain
from self_test.known_fault import (
    Edited,
    Kind,
    KnownFault,
    Patch,
    PutIn,
    Scale,
    Select,
    cases_of,
    everything,
    in_calls,
    in_graphs,
    in_modules,
    in_runtime,
    now_and_then,
    recordings,
)
from self_test.subject import Subject
from verify.faults import Arrays, RunGraph


def relative_shift_by_one(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = modules.relative_shift
    patch.setattr(modules, "relative_shift", lambda x: original(x.roll(1, dims=3)))


def mask_by_one(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = modules.live_frames
    patch.setattr(modules, "live_frames", lambda x, lengths: original(x, lengths + 1))


def padding_attended_to(_: Subject, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(graphs_module, "MASKED", 0.0)


def batch_norm_not_folded(subject: Subject, _: pytest.MonkeyPatch) -> None:
    """Weights as the checkpoint stores them; its convolution has no bias, or one before the normalisation."""
    for index, layer in enumerate(subject.graphs["encoder"].module.encoder.layers):
        name = f"encoder.layers.{index}.conv.depthwise_conv"
        stored = subject.model._checkpoint.stored
        layer.conv.depthwise_conv.weight.copy_(stored.read(f"{name}.weight"))
        layer.conv.depthwise_conv.bias.zero_()


def input_scaled(subject: Subject, _: pytest.MonkeyPatch) -> None:
    module = subject.graphs["encoder"].module
    module.scale = math.sqrt(module.encoder.pre_encode.out.out_features)


def positions_mirrored(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = modules.relative_positions
    patch.setattr(graphs_module, "relative_positions", lambda *given: original(*given).flip(0))


def normalised_with_padding(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = graphs_module.LogMel._normalized

    def faulty(logmel: torch.Tensor, n_frames: torch.Tensor) -> torch.Tensor:
        return original(logmel, torch.full_like(n_frames, logmel.shape[2]))

    patch.setattr(graphs_module.LogMel, "_normalized", staticmethod(faulty))


def no_preemphasis(subject: Subject, _: pytest.MonkeyPatch) -> None:
    subject.graphs["frontend"].module.preemphasis = 0.0


def gates_in_another_order(subject: Subject, _: pytest.MonkeyPatch) -> None:
    """ONNX's order, i o f c, in place of torch's, i f g o."""
    decoder = subject.graphs["step"].module.decoder
    for parameter in decoder.prediction.dec_rnn.lstm.parameters():
        inward, forget, new, outward = parameter.clone().chunk(4)
        parameter.copy_(torch.cat([inward, outward, forget, new]))


# By name: the graph and what is done to its modules.
INJECTED: dict[str, tuple[str, Callable[[Subject, pytest.MonkeyPatch], None]]] = {
    "relative shift off by one": ("encoder", relative_shift_by_one),
    "mask off by one": ("encoder", mask_by_one),
    "padding attended to": ("encoder", padding_attended_to),
    "BatchNorm not folded": ("encoder", batch_norm_not_folded),
    "encoder's input scaled": ("encoder", input_scaled),
    "positions mirrored": ("encoder", positions_mirrored),
    "normalisation after padding": ("frontend", normalised_with_padding),
    "preemphasis forgotten": ("frontend", no_preemphasis),
    "LSTM gates in another order": ("step", gates_in_another_order),
}


def biased_variance(run: RunGraph, inputs: Arrays) -> Arrays:
    """Divide by n in place of n - 1."""
    outputs = run(inputs)
    count = np.maximum(outputs["features_len"], 2)[:, None, None]
    return {**outputs, "features": (outputs["features"] * np.sqrt(count / (count - 1))).astype(np.float32)}


def another_start_token(run: RunGraph, inputs: Arrays, blank: int) -> Arrays:
    return run({**inputs, "token": np.where(inputs["token"] == blank, 0, inputs["token"])})


def hotwords_dead(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recognizer_module, "hotword_tree", lambda *_: None)


def batch_reversed(patch: pytest.MonkeyPatch) -> None:
    original = recognizer_module._TransducerSearch.whole

    def whole(self: Any, encoded: Any, places: Any) -> Any:
        return original(self, encoded, places)[::-1]

    patch.setattr(recognizer_module._TransducerSearch, "whole", whole)


def last_window_lost(patch: pytest.MonkeyPatch) -> None:
    original = recognizer_module.search_windows
    patch.setattr(recognizer_module, "search_windows", lambda *given: list(original(*given))[:-1])


def words_late(patch: pytest.MonkeyPatch) -> None:
    """One frame late from the second token on: a segment of one sentence begins where it should."""
    original = recognizer_module.timed_tokens

    def late(*given: Any) -> Any:
        first, *others = original(*given)
        shifted = [replace(t, span=replace(t.span, start=t.span.start + 1)) for t in others]
        return [first, *shifted]

    patch.setattr(recognizer_module, "timed_tokens", late)


# With the ending of the recordings in which each has to show.
OF_THE_RUNTIME: dict[str, tuple[Patch, str]] = {
    "hotwords dead": (hotwords_dead, "_hotword"),
    "batch order reversed": (batch_reversed, ""),
    "last window lost": (last_window_lost, "_windows"),
    "words one frame late": (words_late, ""),
}


def embeddings_rotated(graph: Edited, _: float) -> None:
    """Those of 156 of the 193 tokens."""
    graph.change("decoder.prediction.embed.weight", lambda x: np.concatenate([x[:37], np.roll(x[37:], 1, axis=0)]))


def _start_token(run: RunGraph, inputs: Arrays) -> Arrays:
    return another_start_token(run, inputs, BLANK)


BLANK = 192  # of the pocket model


def _faults(variant: Variant) -> list[KnownFault]:
    def made(name: str, where: str, put_in: PutIn, judged_by: Select, kind: Kind = "structural") -> KnownFault:
        return KnownFault(name, kind, "parakeet_tdt", "parakeet-pocket", variant, where, put_in, judged_by)

    return [
        *(made(name, graph, in_modules(graph, inject), cases_of(graph)) for name, (graph, inject) in INJECTED.items()),
        made("variance over n", "frontend", in_calls("frontend", biased_variance), cases_of("frontend")),
        made("another start token", "step", in_calls("step", _start_token), cases_of("step")),
        *(
            made(name, "pipeline", in_runtime(patch), recordings(ending), "runtime")
            for name, (patch, ending) in OF_THE_RUNTIME.items()
        ),
    ]


_RARE: tuple[tuple[str, Kind, str, PutIn], ...] = (
    (
        "embeddings of 156 of 193 tokens rotated",
        "structural",
        "step",
        in_graphs(("step", "decode"), embeddings_rotated),
    ),
    ("one call of the encoder in 10 wrong", "runtime", "encoder", now_and_then("encoder", 10)),
    ("one call of the step in 50 wrong", "runtime", "step", now_and_then("step", 50)),
)
_GAINS: dict[Variant, float] = {"fp32": 1e-4, "fp16": 1e-2}

FAULTS = [
    *_faults("fp32"),
    *_faults("fp16"),
    *(
        KnownFault(name, kind, "parakeet_tdt", "parakeet-pocket", "fp32", where, put_in, everything)
        for name, kind, where, put_in in _RARE
    ),
    *(
        KnownFault(
            "gain of a value projection",
            "numeric",
            "parakeet_tdt",
            "parakeet-pocket",
            variant,
            "encoder",
            in_graphs(("encoder",), gain("encoder.layers.0.self_attn.linear_v.weight")),
            cases_of("encoder"),
            Scale(start),
        )
        for variant, start in _GAINS.items()
    ),
]
