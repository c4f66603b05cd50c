"""Streams and events. All work of a device runs in the order in which it was queued, whatever the stream."""

from __future__ import annotations

import time
from typing import Any

from torch_npu import simulator
from torch_npu.npu.device import index_of


class Stream:
    """A name for the device's one queue."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:  # noqa: ARG002 - the real signature
        self.device_index = index_of(device)

    def synchronize(self) -> None:
        simulator.core.synchronize(self.device_index, "stream")

    def query(self) -> bool:
        return True

    def wait_stream(self, stream: Stream) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event


class Event:
    """A mark in the queue. Its time is the host's: it says nothing of a device."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - the real signature
        self._timing = enable_timing
        self._device = index_of(None)
        self._recorded: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        self._device = stream.device_index if stream else index_of(None)
        self._recorded = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        simulator.core.synchronize(self._device, "event")

    def elapsed_time(self, end_event: Event) -> float:
        """Return milliseconds."""
        if not (self._timing and end_event._timing):
            raise RuntimeError("both events must be created with enable_timing=True")
        if self._recorded is None or end_event._recorded is None:
            raise RuntimeError("both events must be recorded before calculating elapsed time")
        return (end_event._recorded - self._recorded) * 1e3


class StreamContext:
    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def stream(stream: Stream | None) -> StreamContext:
    return StreamContext(stream)


def set_stream(stream: Stream) -> None:
    pass


def current_stream(device: Any = None) -> Stream:
    return Stream(device)


default_stream = current_stream
