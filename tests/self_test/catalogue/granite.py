"""Granite Speech: bugs in its modules, what its loop forgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from export.families.granite_speech import graphs as graphs_module
from export.families.granite_speech import language_model, modules
from runtime.engines.base import Engine, Value
from runtime.families.granite_speech import features
from runtime.manifest import Content, Variant
from self_test.known_fault import KnownFault, cases_of, in_modules, in_runtime
from self_test.subject import Subject
from verify.faults import Fault, FaultyEngine


def padding_attended_to(_: Subject, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(modules, "MASKED", 0.0)


def padding_convolved(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = modules.ConformerConvolution.forward
    patch.setattr(
        modules.ConformerConvolution, "forward", lambda self, rows, live: original(self, rows, torch.ones_like(live))
    )


def window_by_one(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = modules.Projector.forward
    patch.setattr(modules.Projector, "forward", lambda self, frames: original(self, frames.roll(1, dims=0)))


def distances_by_one(subject: Subject, _: pytest.MonkeyPatch) -> None:
    subject.graphs["encode_project"].module.distances.add_(1)


def distances_mirrored(subject: Subject, _: pytest.MonkeyPatch) -> None:
    module = subject.graphs["encode_project"].module
    module.distances.copy_(module.distances.flip(0))


def not_self_conditioned(subject: Subject, _: pytest.MonkeyPatch) -> None:
    out_mid = subject.graphs["encode_project"].module.encoder.out_mid
    out_mid.weight.zero_()
    out_mid.bias.zero_()


def position_by_one(_: Subject, patch: pytest.MonkeyPatch) -> None:
    original = graphs_module.rope_rotation
    patch.setattr(graphs_module, "rope_rotation", lambda positions, *given: original(positions + 1, *given))


def rotated_in_pairs(_: Subject, patch: pytest.MonkeyPatch) -> None:
    """Elements 2 i and 2 i + 1 in place of i and i + dh / 2."""
    original = language_model.rotate

    def faulty(heads: torch.Tensor, rotation: Any) -> torch.Tensor:
        halves = torch.cat([heads[..., ::2], heads[..., 1::2]], dim=-1)
        return original(halves, rotation).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)

    patch.setattr(language_model, "rotate", faulty)


def future_seen(_: Subject, patch: pytest.MonkeyPatch) -> None:
    """Or, in `decode`, cache rows that nothing was written to."""
    patch.setattr(graphs_module, "MASKED", 0.0)


def multiplier_dropped(subject: Subject, _: pytest.MonkeyPatch) -> None:
    for graph in ("prefill", "decode"):
        subject.graphs[graph].module.multiplier = 1.0


def residual_dropped(subject: Subject, _: pytest.MonkeyPatch) -> None:
    for layer in subject.graphs["prefill"].module.decoder.layers:
        layer.residual = 1.0


def attention_scaled_as_usual(subject: Subject, _: pytest.MonkeyPatch) -> None:
    for layer in subject.graphs["prefill"].module.decoder.layers:
        layer.self_attn.scale = layer.self_attn.head_dim**-0.5


def logits_not_divided(subject: Subject, _: pytest.MonkeyPatch) -> None:
    subject.graphs["prefill"].module.language_model.scaling = 1.0


def queries_with_other_keys(subject: Subject, _: pytest.MonkeyPatch) -> None:
    """Head h reads the keys of head h % G, where it is h // (H / G)."""
    for layer in subject.graphs["prefill"].module.decoder.layers:
        attention = layer.self_attn
        rows = attention.q_proj.weight.unflatten(0, (-1, attention.groups, attention.head_dim))
        attention.q_proj.weight.copy_(rows.transpose(0, 1).flatten(0, 2).clone())


# By name: the graph and what is done to its modules.
INJECTED: dict[str, tuple[str, Callable[[Subject, pytest.MonkeyPatch], None]]] = {
    "padding attended to": ("encode_project", padding_attended_to),
    "padding convolved": ("encode_project", padding_convolved),
    "projector window misaligned by one": ("encode_project", window_by_one),
    "distances off by one": ("encode_project", distances_by_one),
    "distances mirrored": ("encode_project", distances_mirrored),
    "not self-conditioned": ("encode_project", not_self_conditioned),
    "RoPE position off by one in prefill": ("prefill", position_by_one),
    "RoPE position off by one in decode": ("decode", position_by_one),
    "RoPE over pairs": ("prefill", rotated_in_pairs),
    "future seen": ("prefill", future_seen),
    "rows not written seen": ("decode", future_seen),
    "embedding multiplier dropped in prefill": ("prefill", multiplier_dropped),
    "embedding multiplier dropped in decode": ("decode", multiplier_dropped),
    "residual multiplier dropped": ("prefill", residual_dropped),
    "attention scaled by the head's size": ("prefill", attention_scaled_as_usual),
    "logits not divided": ("prefill", logits_not_divided),
    "queries with other keys": ("prefill", queries_with_other_keys),
}


class ForgetfulEngine(FaultyEngine):
    """Never writes a row behind the prompt's."""

    def write_rows(self, cache: Value, rows: Value, at: int, count: int, start: int = 0) -> None:
        if at == 0:
            super().write_rows(cache, rows, at, count, start)


@contextmanager
def rows_forgotten(subject: Subject, _: float = 1.0) -> Iterator[Engine]:
    yield ForgetfulEngine(subject.engine, subject.artifact, Fault("stale rows", "none", "", lambda run, x: run(x)))


def symmetric_window(patch: pytest.MonkeyPatch) -> None:
    """Hann's, which moves features by a thousandth."""

    def symmetric(frontend: Any) -> Any:
        hann = np.hanning(frontend.win_length).astype(np.float32)
        left = (frontend.n_fft - frontend.win_length) // 2
        return np.pad(hann, (left, frontend.n_fft - frontend.win_length - left))

    patch.setattr(features, "_window", symmetric)


def _forced(content: Content) -> set[str]:
    return {run.name for run in content.teacher_forced}


def _faults(variant: Variant) -> list[KnownFault]:
    made = partial(KnownFault, family="granite_speech", model="granite-pocket", variant=variant)
    return [
        *(
            made(name=name, kind="structural", where=graph, put_in=in_modules(graph, inject), judged_by=cases_of(graph))
            for name, (graph, inject) in INJECTED.items()
        ),
        made(
            name="rows of the cache forgotten", kind="runtime", where="cache", put_in=rows_forgotten, judged_by=_forced
        ),
        made(
            name="symmetric window",
            kind="runtime",
            where="features on the host",
            put_in=in_runtime(symmetric_window),
            judged_by=cases_of("encode_project"),
        ),
    ]


FAULTS = [*_faults("fp32"), *_faults("fp16")]
