"""Sound events: bugs in the modules, in the state that is carried, in the heads on the host, in events themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from runtime.engines.base import Floats
from runtime.families.cnn8rnn import recognizer
from runtime.families.cnn8rnn.heads import SMALLEST
from runtime.manifest import Content, Variant
from runtime.results import Event
from self_test.known_fault import (
    KnownFault,
    Patch,
    cases_of,
    everything,
    in_calls,
    in_modules,
    in_runtime,
    now_and_then,
    recordings,
    wrapped,
)
from self_test.subject import Run, Subject
from verify.faults import Arrays, RunGraph


def direction_dropped(direction: int) -> Callable[[Subject, pytest.MonkeyPatch], None]:
    """The gates of one are zero, whatever is heard."""

    def inject(subject: Subject, _: pytest.MonkeyPatch) -> None:
        rnn = subject.graphs["gates"].module.rnn
        for parameter in (rnn.weight_ih, rnn.bias_ih):
            parameter.unflatten(0, (2, -1))[direction].zero_()

    return inject


def symmetric_window(subject: Subject, _: pytest.MonkeyPatch) -> None:
    """Hann's, in the kernel."""
    module = subject.graphs["frontend"].module
    periodic, symmetric = (
        torch.hann_window(1024, periodic=periodic, dtype=torch.float64) for periodic in (True, False)
    )
    module.kernel.copy_(module.kernel * torch.where(periodic > 0, symmetric / periodic, 0))


def begins_anew(run: RunGraph, inputs: Arrays) -> Arrays:
    """Each call of the recurrence begins with zeros: the runtime carries nothing."""
    return run({**inputs, "h": np.zeros_like(inputs["h"])})


def begins_with_padding(run: RunGraph, inputs: Arrays) -> Arrays:
    """The backward direction has run over a second of zeros when it comes to the recording's last frame."""
    h = inputs["h"].copy()
    if not h.any():
        h[1] = run({"gates": np.zeros_like(inputs["gates"]), "h": h})["states"][0, 1, 24]
    return run({**inputs, "h": h})


def directions_exchanged(run: RunGraph, inputs: Arrays) -> Arrays:
    return run({**inputs, "h": inputs["h"][::-1].copy()})


# What the runtime does between calls of the recurrence.
CARRIED_WRONG: tuple[Run, ...] = (begins_anew, begins_with_padding, directions_exchanged)


def late(run: RunGraph, inputs: Arrays) -> Arrays:
    """Events a quarter of a second late, beyond the collar; no score is another."""
    logits = run(inputs)["logits"]
    return {"logits": logits.take(np.maximum(np.arange(logits.shape[1]) - 6, 0), axis=1)}


def two_classes_swapped(run: RunGraph, inputs: Arrays) -> Arrays:
    logits = run(inputs)["logits"]
    logits[..., [0, 5]] = logits[..., [5, 0]]
    return {"logits": logits}


class HalfPooling:
    """Linear softmax in float16, as the port had it."""

    def __init__(self, _n_classes: int) -> None:
        self._scores: list[Floats] = []

    def push(self, scores: Floats) -> None:
        self._scores.append(scores)

    def result(self) -> Floats:
        scores = np.concatenate(self._scores).astype(np.float16)
        pooled = (scores * scores).sum(axis=0, dtype=np.float16) / scores.sum(axis=0, dtype=np.float16)
        return pooled.astype(np.float32)


def half_scores(logits: Floats) -> Floats:
    odds = np.exp(-np.clip(logits, -11, 11).astype(np.float16))  # above that, float16 overflows
    return np.maximum(1 / (1 + odds), np.float16(SMALLEST)).astype(np.float32)


def shifted(events: Sequence[Event]) -> list[Event]:
    return [replace(event, onset=event.onset + 0.16, offset=event.offset + 0.16) for event in events]


def flat(events: Sequence[Event]) -> list[Event]:
    return [replace(event, score=0.5) for event in events]


def exchanged(events: Sequence[Event]) -> list[Event]:
    return [replace(event, onset=event.offset, offset=event.onset) for event in events]


def next_offset(events: Sequence[Event]) -> list[Event]:
    return [replace(event, offset=later.offset) for event, later in zip(events, [*events[1:], events[-1]], strict=True)]


# What a runtime says of scores that are right.
OF_EVENTS: dict[str, Callable[[Sequence[Event]], list[Event]]] = {
    "events 0.16 s late": shifted,
    "every event's score 0.5": flat,
    "onsets and offsets exchanged": exchanged,
    "offsets of the next event": next_offset,
}


def _told(change: Callable[[Sequence[Event]], list[Event]]) -> Patch:
    def make(recognize: Callable[..., Any]) -> Callable[..., Any]:
        def other(*arguments: Any, **named: Any) -> Any:
            result = recognize(*arguments, **named)
            return replace(result, events=tuple(change(result.events)))

        return other

    return wrapped(recognizer.Cnn8RnnRecognizer, "recognize", make)


def _decisions(content: Content) -> set[str]:
    """Return the cases whose decisions the whole network takes."""
    return {case.name for case in content.cases if case.graph == "head"}


def _faults(variant: Variant) -> list[KnownFault]:
    made = partial(KnownFault, family="cnn8rnn", model="sed-pocket", variant=variant)

    def gates(content: Content) -> set[str]:
        return cases_of("gates")(content) | _decisions(content)

    return [
        *(
            made(
                name=f"{which} direction of the GRU dropped",
                kind="structural",
                where="gates",
                put_in=in_modules("gates", direction_dropped(place)),
                judged_by=gates,
            )
            for place, which in enumerate(("forward", "backward"))
        ),
        made(
            name="symmetric window",
            kind="structural",
            where="frontend",
            put_in=in_modules("frontend", symmetric_window),
            judged_by=cases_of("frontend"),
        ),
        *(
            made(
                name=f"recurrence: {run.__name__.replace('_', ' ')}",
                kind="runtime",
                where="recurrence",
                put_in=in_calls("recurrence", run),
                judged_by=_decisions,
            )
            for run in CARRIED_WRONG
        ),
        made(
            name="a quarter of a second late",
            kind="structural",
            where="head",
            put_in=in_calls("head", late),
            judged_by=recordings("sed_1"),
        ),
        made(
            name="two classes swapped",
            kind="structural",
            where="head",
            put_in=in_calls("head", two_classes_swapped),
            judged_by=recordings("sed_1"),
        ),
        *(
            made(
                name=name,
                kind="runtime",
                where="pipeline",
                put_in=in_runtime(_told(change)),
                judged_by=recordings("sed_1"),
            )
            for name, change in OF_EVENTS.items()
        ),
    ]


FAULTS = [
    *_faults("fp32"),
    *_faults("fp16"),
    KnownFault(
        "one call of the head in 10 wrong",
        "runtime",
        "cnn8rnn",
        "sed-pocket",
        "fp32",
        "head",
        now_and_then("head", 10),
        everything,
    ),
]
