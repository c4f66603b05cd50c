"""What a device draws by npu-smi, idle and at work."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from threading import Event, Thread

from runtime.ascend import ascend_facts
from verify.timings import Power

# npu-smi answers within a second where the driver is well, and the driver renews the value about once in one.
_TIMEOUT_S = 5.0
_PAUSE_S = 0.5
_READINGS = 5


def power_now(device: str) -> float | None:
    """Return the watts that npu-smi tells of a device now; None where it tells none, or the device is no NPU."""
    kind, _, index = device.partition(":")
    if kind != "npu":
        return None
    chip = ascend_facts(npu_smi_timeout_s=_TIMEOUT_S).chip(int(index))
    return chip.power_w if chip else None


def power_at_work(device: str, idle_w: float | None, work: Callable[[], object]) -> Power | None:
    """Return the watts that a device draws while `work` is done again and again.

    Parameters
    ----------
    device : str
        Such as `npu:0`.
    idle_w : float, optional
        What `power_now` told before anything was opened; None: nothing is read.
    work : callable
        Called in this thread, until the last reading is over.

    """
    if idle_w is None:
        return None
    readings: list[float] = []
    stop = Event()
    reader = Thread(target=_read, args=(device, readings, stop), daemon=True)
    reader.start()
    try:
        while reader.is_alive():
            work()
    finally:
        stop.set()
    if not readings:
        return None
    return Power(idle_w=idle_w, busy_w=tuple(readings), mean_w=fmean(readings), max_w=max(readings))


def _read(device: str, readings: list[float], stop: Event) -> None:
    for _ in range(_READINGS):
        # Before the reading too: the device's clock and the driver's value follow the work.
        if stop.wait(_PAUSE_S):
            return
        watts = power_now(device)
        if watts is None:
            return
        readings.append(watts)
