"""Graph capture; see csrc/graph.h for what holds."""

from __future__ import annotations

import gc
import os
from typing import Any

from torch_npu import simulator
from torch_npu.npu.device import synchronize
from torch_npu.npu.memory import empty_cache


def is_current_stream_capturing() -> bool:
    return simulator.core.is_capturing()


def graph_pool_handle() -> tuple[int, int]:
    return (0, 1)


class NPUGraph:
    """Captured work. Unlike the real one, all memory that it touched is kept until `reset`."""

    def __init__(self) -> None:
        self._graph = simulator.core.Graph()

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:  # noqa: ARG002 - the real signature
        if os.environ.get("TASK_QUEUE_ENABLE") == "2":
            raise RuntimeError("Do not support TASK_QUEUE_ENABLE = 2 during NPU graph capture.")
        simulator.check_capture()
        self._graph.begin()

    def capture_end(self) -> None:
        self._graph.end()

    def replay(self) -> None:
        self._graph.replay()

    def reset(self) -> None:
        self._graph.reset()

    def pool(self) -> tuple[int, int]:
        return graph_pool_handle()


class graph:  # noqa: N801 - the real name
    """Captures what runs inside into `npu_graph`."""

    def __init__(
        self,
        npu_graph: NPUGraph,
        pool: Any = None,
        stream: Any = None,  # noqa: ARG002 - the real signature
        auto_dispatch_capture: bool = False,  # noqa: ARG002, FBT001, FBT002
        capture_error_mode: str = "global",
    ) -> None:
        self._graph = npu_graph
        self._pool = pool
        self._mode = capture_error_mode

    def __enter__(self) -> None:
        synchronize()
        gc.collect()
        empty_cache()
        self._graph.capture_begin(self._pool, self._mode)

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None:
            self._graph.capture_end()
        else:
            self._graph.reset()
