"""What an engine is: something that opens an artifact's graphs on a device and calls them with named arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.manifest import Dtype, TensorSpec

# A tensor in the engine's own form, where the engine keeps it: a numpy array, or a torch.Tensor on the device.
Value: TypeAlias = Any
Array: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float32]
BoundGraph: TypeAlias = Callable[[Mapping[str, Value]], dict[str, Value]]


class Engine(Protocol):
    """Runs the graphs of one artifact on one device. Results stay on the device until `get` fetches them."""

    name: str
    device: str

    def put(self, array: Array, dtype: Dtype) -> Value:
        """Return `array` on the device as `dtype` (cast where it differs)."""

    def get(self, value: Value) -> Array:
        """Return `value` as a numpy array on the host; bfloat16 comes back as float32. Waits for the device."""

    def zeros(self, spec: TensorSpec) -> Value:
        """Return a zero tensor on the device with the dtype and (static) shape of `spec`."""

    def write_rows(self, cache: Value, rows: Value, at: int, count: int) -> None:
        """Copy `rows[:, :, :count]` into `cache[:, :, at : at + count]` in place; both [B, H, T, dh]."""

    def bind(self, graph: str, fixed: Mapping[str, Value]) -> BoundGraph:
        """Return a function that calls `graph` with `fixed` and the inputs given at each call.

        The engine sees writes made to the fixed values between calls (`write_rows`).
        """

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Call `graph` once; returns its outputs by name."""

    def synchronize(self) -> None:
        """Wait until the device has finished; for timing."""

    def close(self) -> None:
        """Release sessions and device memory."""
