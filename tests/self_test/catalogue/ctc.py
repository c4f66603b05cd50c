"""Parakeet-CTC: its graphs edited, and what stands between them."""

from __future__ import annotations

from functools import partial

import numpy as np

from runtime.manifest import Variant
from self_test.edits import gain, rolled
from self_test.known_fault import Edit, KnownFault, Scale, cases_of, in_calls, in_graphs
from verify.faults import Arrays, RunGraph


def turned(run: RunGraph, inputs: Arrays, name: str, by: int, axis: int) -> Arrays:
    """Run the graph and turn one of its outputs by so many places along an axis."""
    outputs = run(inputs)
    return {**outputs, name: np.roll(outputs[name], by, axis=axis)}


LAYER = "encoder.layers.0"
EDITS: dict[str, Edit] = {
    "rows of the head off by one": rolled("decoder.decoder_layers.0.weight"),
    "rows of a value projection off by one": rolled(f"{LAYER}.self_attn.linear_v.weight"),
}


def _faults(variant: Variant) -> list[KnownFault]:
    made = partial(KnownFault, family="parakeet_ctc", model="ctc-random", variant=variant)
    return [
        made(
            name="features 40 bins higher",
            kind="structural",
            where="frontend",
            put_in=in_calls("frontend", partial(turned, name="features", by=40, axis=1)),
            judged_by=cases_of("frontend"),
        ),
        made(
            name="tokens off by 50",
            kind="structural",
            where="encoder",
            put_in=in_calls("encoder", partial(turned, name="logits", by=50, axis=2)),
            judged_by=cases_of("encoder"),
        ),
        made(
            name="a frame late",
            kind="structural",
            where="encoder",
            put_in=in_calls("encoder", partial(turned, name="logits", by=1, axis=1)),
            judged_by=cases_of("encoder"),
        ),
        *(
            made(
                name=name,
                kind="structural",
                where="encoder",
                put_in=in_graphs(("encoder",), edit),
                judged_by=cases_of("encoder"),
            )
            for name, edit in EDITS.items()
        ),
        made(
            name="gain of a value projection",
            kind="numeric",
            where="encoder",
            put_in=in_graphs(("encoder",), gain(f"{LAYER}.self_attn.linear_v.weight")),
            judged_by=cases_of("encoder"),
            scale=Scale(1e-4 if variant == "fp32" else 3e-2),
        ),
    ]


FAULTS = [*_faults("fp32"), *_faults("fp16")]
