"""torch's profiler around the graphs of an engine."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from runtime.engines.profile import Profile, Times

_HOST_ONLY = "times of the host: what it took to start the operators; the NPU's own times are msprof's to tell"


class TorchRecorder:
    """Records from now on what torch does, on the host and on a CUDA device.

    Parameters
    ----------
    device : str
        Where the graphs run.

    """

    def __init__(self, device: str) -> None:
        self._remark = _HOST_ONLY if device.startswith("npu") else ""
        cuda = [ProfilerActivity.CUDA] if device.startswith("cuda") else []
        # torch gives its events no types.
        self._profiler: Any = profile(activities=[ProfilerActivity.CPU, *cuda])
        self._profiler.start()
        # At exit too: torch 2.13 ends a process whose profiler still runs by a segmentation fault.
        self._stop = weakref.finalize(self, self._profiler.stop)
        self._graphs: set[str] = set()

    @contextmanager
    def call(self, graph: str) -> Iterator[None]:
        """Mark what is done inside as a call of `graph`."""
        self._graphs.add(graph)
        with record_function(graph):
            yield

    def take(self) -> Profile:
        """Stop, and return what was recorded."""
        self._stop()
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(trace))
            data = trace.read_bytes()
        times = Times()
        for event in self._profiler.events() or ():
            graph = self._graph_of(event)
            if graph is None:
                continue
            # aten::mm is an operator; what else there is, such as a method of TorchScript, stands around operators.
            is_operator = "::" in event.name
            times.add(
                graph,
                event.name if is_operator else "",
                event.self_cpu_time_total / 1e6,
                event.self_device_time_total / 1e6,
                calls=int(is_operator or self._is_call(event)),
            )
        return Profile(times.take(), data, self._remark)

    def _graph_of(self, event: Any) -> str | None:
        """Return in which graph's call an operator of the host ran; None outside, and for work of the device.

        The device's work is in the times of the operators that started it.
        """
        while event is not None and not self._is_call(event):
            event = event.cpu_parent
        return None if event is None else event.name

    def _is_call(self, event: Any) -> bool:
        # The profiler repeats annotations on a device's timeline.
        return event.is_user_annotation and event.name in self._graphs and event.device_type.name == "CPU"
