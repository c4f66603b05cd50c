"""What cuda and npu have in common: torch gives both the same interface under another name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from runtime.engines.probe import DeviceFacts, DeviceMemory, Mark
from runtime.errors import EnvironmentNotFitError
from runtime.manifest import Dtype

_WARM_UP = 2


class Accelerator:
    """A device beside the host, whose work runs behind the calls that start it.

    Parameters
    ----------
    name : str
        Such as `npu:0`.
    facts : DeviceFacts
        What it is and which flags were set.
    graph_class : str
        The name of the class that captures graphs.

    """

    def __init__(self, name: str, facts: DeviceFacts, graph_class: str) -> None:
        self.name = name
        self.facts = facts
        self._module = torch.get_device_module(name)
        self._graph_class = graph_class
        self._module.set_device(name)
        self.put_waits = self.put_operators = 0
        self.lacks: frozenset[Dtype] = frozenset()

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy of a host tensor on the device; the host waits for the work before it."""
        self.put_waits += 1
        return tensor.to(self.name)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor's values on the host; waits for the device."""
        return tensor.cpu()

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        self._module.synchronize(self.name)

    def memory(self) -> DeviceMemory:
        """Return what torch holds on the device."""
        module = self._module
        return DeviceMemory(
            module.memory_allocated(self.name),
            module.memory_reserved(self.name),
            module.max_memory_allocated(self.name),
        )

    def free_memory(self) -> int:
        """Return the device's memory less what torch's tensors hold; other processes' is not seen."""
        total: int = self._module.get_device_properties(self.name).total_memory
        return total - int(self._module.memory_allocated(self.name))

    def release(self) -> None:
        """Give cached memory back to the device."""
        self._module.empty_cache()

    def mark(self) -> Mark:
        """Return an event behind the work given so far."""
        event = self._module.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Mark, end: Mark) -> float:
        """Return the seconds between two events."""
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        """Return a function that replays the device's work of `call`.

        Raises
        ------
        EnvironmentNotFitError
            This torch cannot capture.

        """
        module = self._module
        if not hasattr(module, self._graph_class):
            raise EnvironmentNotFitError(
                f"{self.name}: expected {self._graph_class} for --capture, torch {torch.__version__} has none; "
                "leave out --capture"
            )
        # Libraries allocate their workspaces at the first calls, which a capture may not.
        side = module.Stream()
        side.wait_stream(module.current_stream())
        with module.stream(side):
            for _ in range(_WARM_UP):
                call()
        module.current_stream().wait_stream(side)
        graph = getattr(module, self._graph_class)()
        with module.graph(graph):
            call()
        replay: Callable[[], None] = graph.replay
        return replay
