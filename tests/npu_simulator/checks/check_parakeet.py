"""Parakeet-TDT on the simulated device beyond check_families.py; run by tests/npu/test_simulated_families.py.

The encoder is on the device with the search on the host, or the search there, too.
"""

from __future__ import annotations

import pytest
from families import SEARCHES
from on_device import OTHER, RECORDING, Opened, host_copies, opened
from torch_npu import simulator

from runtime.families.parakeet_tdt.settings import decode_graph

pytest_plugins = ("on_device",)


@pytest.mark.parametrize("search", SEARCHES)
def test_copies_and_operators_are_those_that_were_counted(on_npu: Opened, search: str) -> None:
    on_npu.recognize(RECORDING, **SEARCHES[search])
    simulator.clear_record()
    counts = on_npu.recognize(RECORDING, **SEARCHES[search]).counts
    report = simulator.report()
    # One number is no copy: the length of a recording, and all of the search's state that has one number a recording.
    numbers = {"host": 1, "device": 4}[search]
    copied = {"host_to_device": counts["copies_in"] - numbers, "device_to_host": counts["copies_out"]}
    assert host_copies(report) == copied
    assert not report["fallbacks"]
    assert counts["operators"] == report["operators_run"]
    assert counts["syncs"] == sum(report["synchronizations"].values())
    if search == "host":
        # Samples and length to the device, the encoder's frames back.
        assert (counts["calls"], counts["copies_in"], counts["copies_out"]) == (2, 2, 1)
        assert counts["host_calls"] > 10
    else:
        calls = counts["calls"] - 3  # front-end, encoder, the first step
        assert calls >= 1
        # The same two, the state that the search begins with; seven columns for each call of 32 steps.
        assert (counts["copies_in"], counts["copies_out"]) == (7, 7 * calls)
        assert counts["host_calls"] == 0


def test_each_length_of_a_recording_is_a_shape_of_its_own() -> None:
    """Which is why `doctor` calls the shapes free."""
    run = opened("torchscript")
    run.recognize(OTHER, **SEARCHES["device"])
    run.recognize(RECORDING, **SEARCHES["device"])
    shapes = run.engine.probe.shapes()
    assert shapes == {"frontend": 2, "encoder": 2, "step": 1, decode_graph(32): 2}
