"""What an engine is: something that opens an artifact's graphs on a device and calls them with named arrays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.engines.probe import Probe
from runtime.engines.profile import Profile
from runtime.manifest import Dtype, TensorSpec

# A tensor in the engine's own form, where the engine keeps it: a numpy array, or a torch.Tensor on the device.
Value: TypeAlias = Any
Array: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float32]
BoundGraph: TypeAlias = Callable[[Mapping[str, Value]], dict[str, Value]]


@dataclass(frozen=True)
class EngineSettings:
    """How an engine uses its device.

    `capture` records graphs once and replays them (cuda, npu). `deterministic` asks for the same bits each time.
    `default_precision` leaves the device's own default in place, which on an NPU computes fp32 in fewer bits.
    `profile` records what the graphs do, from the opening on.
    """

    capture: bool = False
    deterministic: bool = False
    default_precision: bool = False
    profile: bool = False


DEFAULT_SETTINGS = EngineSettings()


class Engine(Protocol):
    """Runs the graphs of one artifact on one device. Results stay on the device until `get` fetches them."""

    name: str
    device: str

    @property
    def probe(self) -> Probe:
        """What the device tells of itself."""

    def open(self, graph: str) -> None:
        """Open `graph` now, not at its first call."""

    def put(self, array: Array, dtype: Dtype) -> Value:
        """Return a copy of `array` on the device as `dtype` (cast where it differs)."""

    def get(self, value: Value) -> Array:
        """Return `value` as a numpy array on the host; bfloat16 comes back as float32. Waits for the device.

        The array may share its memory with `value`.
        """

    def zeros(self, spec: TensorSpec) -> Value:
        """Return a zero tensor on the device with the dtype and (static) shape of `spec`."""

    def write_rows(self, cache: Value, rows: Value, at: int, count: int, start: int = 0) -> None:
        """Copy `rows[:, :, start : start + count]` into `cache[:, :, at : at + count]` in place; both [B, H, T, dh]."""

    def bind(self, graph: str, fixed: Mapping[str, Value]) -> BoundGraph:
        """Return a function that calls `graph` with `fixed` and the inputs given at each call.

        The engine sees writes made to the fixed values between calls (`write_rows`). What a call returns is valid
        until the next call of the same function: an engine may write its results into the same memory each time.
        """

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Call `graph` once; returns its outputs by name, in memory of their own."""

    def synchronize(self) -> None:
        """Wait until the device has finished; for timing."""

    def take_profile(self) -> Profile:
        """Return what was recorded since the engine was opened with `profile`; the recording ends."""

    def close(self) -> None:
        """Release sessions and device memory."""


def static_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of `spec`.

    Raises
    ------
    ValueError
        It has a symbolic dimension.

    """
    shape = tuple(size for size in spec.shape if isinstance(size, int))
    if len(shape) != len(spec.shape):
        msg = f"{spec.name}: expected a static shape, found {spec.shape}"
        raise ValueError(msg)
    return shape


def check_inputs(graph: str, specs: Sequence[TensorSpec], values: Mapping[str, Value]) -> None:
    """Compare the names, dtypes and shapes of `values` with `specs`; a symbolic dimension has one size in a call.

    A traced graph runs on other lengths than it was traced with and returns a wrong result without a word, so every
    call is checked.

    Raises
    ------
    ValueError
        They differ: a mistake of the caller.

    """
    if values.keys() != {spec.name for spec in specs}:
        expected, found = sorted(spec.name for spec in specs), sorted(values)
        msg = f"{graph}: expected the inputs {expected}, found {found}"
        raise ValueError(msg)
    sizes: dict[str, int] = {}
    for spec in specs:
        value = values[spec.name]
        dtype, shape = _dtype_name(value.dtype), tuple(value.shape)
        if dtype != spec.dtype or not _fits(shape, spec.shape, sizes):
            msg = f"{graph}: {spec.name}: expected {spec.dtype} {spec.shape}, found {dtype} {shape}"
            raise ValueError(msg)


@cache
def _dtype_name(dtype: Hashable) -> str:
    """Return the manifest's name of a dtype of numpy or torch; numpy takes 7 us to find its own, six times a call."""
    return str(dtype).removeprefix("torch.")


def _fits(shape: tuple[int, ...], expected: Sequence[int | str], sizes: dict[str, int]) -> bool:
    """Return whether a shape is the expected one; `sizes` keeps what its symbolic dimensions stand for."""
    return len(shape) == len(expected) and all(
        found == (sizes.setdefault(size, found) if isinstance(size, str) else size)
        for found, size in zip(shape, expected, strict=True)
    )


def varying_inputs(graph: str, specs: Sequence[TensorSpec], fixed: Mapping[str, Value]) -> list[TensorSpec]:
    """Return the specs of the inputs that `fixed` leaves to each call, after a check of `fixed`."""
    varying = [spec for spec in specs if spec.name not in fixed]
    if len(varying) + len(fixed) != len(specs):
        msg = f"{graph}: expected inputs of {[spec.name for spec in specs]}, found {sorted(fixed)}"
        raise ValueError(msg)
    check_inputs(graph, [spec for spec in specs if spec.name in fixed], fixed)
    return varying
