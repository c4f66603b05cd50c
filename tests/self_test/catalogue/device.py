"""What operators of a device get wrong, on the simulated NPU: fp32 rounded to other formats, gains, NaN.

The operators and kinds by family are those of tests/npu_simulator/checks/families.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from npu_simulator.checks.families import FAMILIES

from runtime.engines.base import Engine
from runtime.manifest import Content
from self_test.known_fault import NPU, KnownFault, PutIn, Scale, Strength
from self_test.subject import Subject

_MODELS = {
    "whisper": "whisper-pocket",
    "cnn8rnn": "sed-pocket",
    "parakeet_tdt": "parakeet-pocket",
    "granite_speech": "granite-pocket",
}


def _in_operators(operators: str, kind: str) -> PutIn:
    @contextmanager
    def put_in(subject: Subject, strength: Strength) -> Iterator[Engine]:
        from torch_npu import simulator  # type: ignore[import-not-found]  # there in this fault's process alone

        simulator.clear_record()
        simulator.apply({"faults": [{"operators": operators, "kind": kind, "amount": 1 + strength}]})
        try:
            yield subject.engine
            assert simulator.report()["fault_hits"], f"nothing called {operators}"
        finally:
            simulator.apply({})

    return put_in


def _first_cases(content: Content) -> set[str]:
    return set({case.graph: case.name for case in reversed(content.cases)}.values())


def _faults() -> Iterator[KnownFault]:
    for family, model in _MODELS.items():
        for operators, kind, amount, _ in FAMILIES[family].above:
            scale = Scale(amount - 1) if kind == "gain" else None
            yield KnownFault(
                name=f"{operators.removeprefix('aten::')} {kind} on the device",
                kind="numeric" if kind == "gain" else "structural",
                family=family,
                model=model,
                variant="fp32",
                where="simulated NPU",
                put_in=_in_operators(operators, kind),
                judged_by=_first_cases,
                scale=scale,
                device=NPU,
            )


FAULTS = list(_faults())
