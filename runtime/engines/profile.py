"""What an engine did, by graph and operator: sums, and a Chrome trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The categories that torch gives a named range and an operator in its traces.
CALL, OPERATOR = "user_annotation", "cpu_op"
# What ONNX Runtime's profiler keeps of one session; it drops later events without a word.
_MOST_EVENTS = 1_000_000
_NODE_SUFFIX = "_kernel_time"
_KEPT = ("op_name", "provider", "input_type_shape", "output_type_shape")


@dataclass
class OperatorTime:
    """How often an operator ran in a graph, and its seconds without those of operators within it.

    `operator` is "" for the calls of the graph themselves: what they took beside all operators. `device_s` is the
    device's own time, 0 where nobody measures it.
    """

    graph: str
    operator: str
    calls: int = 0
    host_s: float = 0.0
    device_s: float = 0.0


@dataclass(frozen=True)
class Profile:
    """What was recorded: sums, the trace as JSON that Perfetto and chrome://tracing open, and what is not in them."""

    times: tuple[OperatorTime, ...]
    trace: bytes
    remark: str = ""


class Times:
    """Adds up times by graph and operator."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], OperatorTime] = {}

    def add(self, graph: str, operator: str, host_s: float, device_s: float = 0.0, *, calls: int = 1) -> None:
        """Add an event, or with `calls` 0 a correction of time that is counted elsewhere."""
        time = self._found.setdefault((graph, operator), OperatorTime(graph, operator))
        time.calls += calls
        time.host_s += host_s
        time.device_s += device_s

    def take(self) -> tuple[OperatorTime, ...]:
        """Return the sums."""
        return tuple(self._found.values())


def profile_from_sessions(files: Mapping[str, Path], starts: Mapping[str, int]) -> Profile:
    """Return the profile of ONNX Runtime's files, one a graph, as one.

    Parameters
    ----------
    files : mapping of str to Path
        What each graph's session wrote.
    starts : mapping of str to int
        When each session began to count its microseconds, in nanoseconds.

    """
    times, merged, full = Times(), [], []
    first = min(starts.values(), default=0)
    for graph, file in files.items():
        events: list[dict[str, Any]] = json.loads(file.read_bytes())
        if len(events) >= _MOST_EVENTS:
            full.append(graph)
        for event in events:
            event["ts"] += (starts[graph] - first) / 1e3
            arguments = event.get("args", {})
            event["args"] = {"graph": graph} | {name: arguments[name] for name in _KEPT if name in arguments}
            if event.get("cat") == "Node":
                event |= {"cat": OPERATOR, "name": event["name"].removesuffix(_NODE_SUFFIX)}
                times.add(graph, arguments["op_name"], event["dur"] / 1e6)
                times.add(graph, "", -event["dur"] / 1e6, calls=0)
            elif event["name"] == "model_run":
                event |= {"cat": CALL, "name": graph}
                times.add(graph, "", event["dur"] / 1e6)
            merged.append(event)
    remark = f"the end of {', '.join(full)} is missing: more than {_MOST_EVENTS:,} events" if full else ""
    return Profile(times.take(), json.dumps({"traceEvents": merged, "displayTimeUnit": "ms"}).encode(), remark)
