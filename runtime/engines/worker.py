"""An engine in a process of its own, which ends at the first error of its device.

After one asynchronous error torch_npu goes on without a word and computes from stale memory, so no process may use an
NPU after an error. The process that owns the device runs the real engine (runtime/engines/worker_process.py); here
stands its double, whose values are numbers. Once the device has failed, everything raises that failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

from runtime.artifact import Artifact
from runtime.engines.base import (
    DEFAULT_SETTINGS,
    Array,
    BoundGraph,
    EngineSettings,
    Value,
    check_inputs,
    static_shape,
    varying_inputs,
)
from runtime.engines.channel import Channel, Job
from runtime.engines.probe import DeviceFacts, DeviceMemory, Mark, Work
from runtime.engines.profile import Profile
from runtime.manifest import Dtype, TensorSpec


class RemoteObject:
    """Something in the process, by number; forgotten there when nobody here refers to it."""

    def __init__(self, channel: Channel, number: int) -> None:
        self.channel = channel
        self.number = number

    def __del__(self) -> None:
        """Leave the number for the next message: this may run in the middle of one."""
        self.channel.dropped.append(self.number)


class RemoteValue(RemoteObject):
    """A tensor on the device."""

    def __init__(self, channel: Channel, number: int, dtype: str, shape: tuple[int, ...] | None) -> None:
        super().__init__(channel, number)
        self.dtype = dtype
        self._shape = shape

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; asked for where a graph's output leaves it open."""
        if self._shape is None:
            self._shape = tuple(self.channel.ask("shape", self.number))
        return self._shape


class RemoteProbe:
    """The probe of the engine in the process."""

    def __init__(self, channel: Channel, facts: DeviceFacts) -> None:
        self._channel = channel
        self._marks = count()
        self.facts = facts

    def memory(self) -> DeviceMemory | None:
        """Return what is held on the device."""
        memory: DeviceMemory | None = self._channel.ask("memory")
        return memory

    def free_memory(self) -> int | None:
        """Return about how many bytes more the device has for this process."""
        free: int | None = self._channel.ask("free_memory")
        return free

    def shapes(self) -> dict[str, int]:
        """Return by graph how many different sets of input shapes it was called with."""
        shapes: dict[str, int] = self._channel.ask("shapes")
        return shapes

    def operators(self) -> int:
        """Return how many operators all runs so far were made of."""
        operators: int = self._channel.ask("operators")
        return operators

    def put_waits(self) -> int:
        """Return for how many of the arrays put so far the host had to wait."""
        waits: int = self._channel.ask("put_waits")
        return waits

    def work(self) -> dict[str, Work]:
        """Return what was asked of the device so far, by graph."""
        work: dict[str, Work] = self._channel.ask("work")
        return work

    def mark(self) -> Mark:
        """Return a mark behind the work given so far."""
        number = next(self._marks)
        self._channel.tell("mark", number)
        return number

    def seconds(self, start: Mark, end: Mark) -> float:
        """Return the seconds between two marks, each of which can be used in one such question."""
        return float(self._channel.ask("seconds", start, end))


class WorkerEngine:
    """Runs an artifact's graphs in a process of its own.

    Parameters
    ----------
    artifact : Artifact
        A checked artifact.
    name : str
        The engine, `torchscript` or `pt2`.
    device : str
        Such as `npu:0`.
    threads : int, optional
        Threads within an operator on the CPU.
    settings : EngineSettings
        How the device is used.

    Raises
    ------
    AtlasportError
        As the engine itself does when it is opened.
    DeviceFailedError
        The device fails while it is opened. Later any method may raise it, for an operation before.

    """

    def __init__(
        self,
        artifact: Artifact,
        name: str,
        device: str,
        threads: int | None = None,
        settings: EngineSettings = DEFAULT_SETTINGS,
    ) -> None:
        self.name = name
        self.device = device
        self._graphs = artifact.content.graphs
        self._numbers = count()
        self._channel = Channel(Job(artifact, name, device, threads, settings))
        self.probe = RemoteProbe(self._channel, self._channel.receive())

    def open(self, graph: str) -> None:
        """Open `graph` now."""
        self._channel.graph = graph
        self._channel.ask("open", graph)

    def put(self, array: Array, dtype: Dtype) -> Value:
        """Return a copy of `array` on the device as `dtype`."""
        value = self._value(dtype, array.shape)
        self._channel.tell("put", value.number, array, dtype)
        return value

    def get(self, value: Value) -> Array:
        """Return `value` on the host; waits for the device."""
        array: Array = self._channel.ask("get", self._number(value))
        return array

    def zeros(self, spec: TensorSpec) -> Value:
        """Return zeros of the dtype and shape of `spec`."""
        value = self._value(spec.dtype, static_shape(spec))
        self._channel.tell("zeros", value.number, spec)
        return value

    def write_rows(self, cache: Value, rows: Value, at: int, count: int, start: int = 0) -> None:
        """Copy `rows[:, :, start : start + count]` into `cache[:, :, at : at + count]`; both [B, H, T, dh]."""
        self._channel.tell("write_rows", self._number(cache), self._number(rows), at, count, start)

    def bind(self, graph: str, fixed: Mapping[str, Value]) -> BoundGraph:
        """Return a function that calls `graph` with `fixed` and the inputs given at each call."""
        signature = self._graphs[graph]
        varying = varying_inputs(graph, signature.inputs, fixed)
        bound = RemoteObject(self._channel, next(self._numbers))
        self._channel.tell("bind", bound.number, graph, self._numbered(fixed))

        def call(given: Mapping[str, Value]) -> dict[str, Value]:
            check_inputs(graph, varying, given)
            outputs = self._outputs(signature.outputs)
            self._channel.graph = graph
            self._channel.tell("call", bound.number, graph, self._numbered(given), self._numbered(outputs))
            return outputs

        return call

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Call `graph` once; returns its outputs by name."""
        signature = self._graphs[graph]
        check_inputs(graph, signature.inputs, inputs)
        outputs = self._outputs(signature.outputs)
        self._channel.graph = graph
        self._channel.tell("run", graph, self._numbered(inputs), self._numbered(outputs))
        return outputs

    def synchronize(self) -> None:
        """Wait until the device has finished; at once where the last thing was an answer from it."""
        if not self._channel.idle:
            self._channel.ask("synchronize")

    def take_profile(self) -> Profile:
        """Return what was recorded in the process."""
        profile: Profile = self._channel.ask("take_profile")
        return profile

    def close(self) -> None:
        """End the process; afterwards neither the engine nor its values can be used."""
        self._channel.close()

    def _value(self, dtype: str, shape: tuple[int, ...] | None) -> RemoteValue:
        return RemoteValue(self._channel, next(self._numbers), dtype, shape)

    def _outputs(self, specs: Sequence[TensorSpec]) -> dict[str, RemoteValue]:
        outputs = {}
        for spec in specs:
            known = all(isinstance(size, int) for size in spec.shape)
            outputs[spec.name] = self._value(spec.dtype, static_shape(spec) if known else None)
        return outputs

    def _number(self, value: Value) -> int:
        if not isinstance(value, RemoteValue) or value.channel is not self._channel:
            raise ValueError(f"expected a value of this engine, found {value!r}; values live in one process only")
        return value.number

    def _numbered(self, values: Mapping[str, Value]) -> dict[str, int]:
        return {name: self._number(value) for name, value in values.items()}
