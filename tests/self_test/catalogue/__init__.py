"""Every known fault, a module a family; knows nothing of gates, limits or golden runs."""

from __future__ import annotations

from functools import cache

from self_test.known_fault import KnownFault


@cache
def catalogue() -> tuple[KnownFault, ...]:
    """Return all faults, those of one artifact one after the other."""
    from self_test.catalogue import ctc, device, granite, parakeet, sounds, whisper_graphs, whisper_runtime

    families = (whisper_graphs, whisper_runtime, parakeet, ctc, granite, sounds, device)
    faults = [fault for family in families for fault in family.FAULTS]
    assert len({fault.key for fault in faults}) == len(faults)
    return tuple(sorted(faults, key=lambda fault: (fault.model, fault.variant)))


def faults_of(model: str, variant: str = "fp32", kind: str | None = None) -> dict[str, KnownFault]:
    """Return the faults of one artifact by name."""
    return {
        fault.name: fault
        for fault in catalogue()
        if (fault.model, fault.variant) == (model, variant) and kind in (None, fault.kind)
    }
