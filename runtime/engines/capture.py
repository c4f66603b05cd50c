"""Graph capture: a graph's work is recorded once on the device and replayed with one call instead of hundreds.

A replay reads its inputs and writes its outputs where the recording did. So the inputs of a call are copied into the
recording's memory first, but for tensors that stay in one place between calls and may be written there (the caches of
a decode loop): these are recorded where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import torch

from runtime.engines.devices import Device
from runtime.errors import EnvironmentNotFitError

# A replay runs the kernels that the eager call ran; only the choice among equal ones may differ.
_LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}

Eager = Callable[..., Sequence[torch.Tensor]]


class CapturedGraph:
    """One graph's recording, checked against an eager call with the same inputs.

    Parameters
    ----------
    graph : str
        Its name.
    device : Device
        Where it runs.
    eager : callable
        Runs it.
    values : mapping of str to tensor
        Its inputs.
    fixed : set of str
        Inputs that are the same tensors at later calls.

    Raises
    ------
    EnvironmentNotFitError
        The device cannot capture it, or the replay's outputs are not the eager ones.

    Attributes
    ----------
    copied : int
        Inputs that were copied into the recording's memory so far.

    """

    def __init__(
        self,
        graph: str,
        device: Device,
        eager: Eager,
        values: Mapping[str, torch.Tensor],
        fixed: AbstractSet[str],
    ) -> None:
        # Outputs of other graphs are never written to, so a copy of one stays right as long as it is the same tensor.
        self._in_place = {name: values[name] for name in fixed if not values[name].is_inference()}
        self._buffers = {
            name: self._in_place[name] if name in self._in_place else torch.zeros_like(value)
            for name, value in values.items()
        }
        self._loaded: dict[str, torch.Tensor] = {}
        self._fixed = fixed
        self._outputs: Sequence[torch.Tensor] = ()
        self.copied = 0

        def call() -> None:
            self._outputs = eager(*self._buffers.values())

        # Recorded over zeros: a replay that keeps what it was recorded with fails the check.
        replay = device.capture(call)
        if replay is None:
            raise EnvironmentNotFitError(f"{graph}: {device.name} cannot capture graphs; leave out --capture")
        self._replay = replay
        expected = eager(*values.values())
        for place, (found, wanted) in enumerate(zip(self(values), expected, strict=True)):
            _check(graph, place, found, wanted)

    def fits(self, values: Mapping[str, torch.Tensor], fixed: AbstractSet[str]) -> bool:
        """Return whether a call with these inputs may replay this recording."""
        return (
            fixed == self._fixed
            and all(values[name] is tensor for name, tensor in self._in_place.items())
            and all(values[name].shape == buffer.shape for name, buffer in self._buffers.items())
            # A tensor that may be written between calls must be read where it is.
            and all(values[name].is_inference() for name in fixed if name not in self._in_place)
        )

    def __call__(self, values: Mapping[str, torch.Tensor]) -> Sequence[torch.Tensor]:
        """Replay with these inputs; the outputs lie in the same memory each time."""
        for name, buffer in self._buffers.items():
            if name in self._in_place or self._loaded.get(name) is values[name]:
                continue
            buffer.copy_(values[name])
            self.copied += 1
            if name in self._fixed:
                self._loaded[name] = values[name]
        self._replay()
        return self._outputs


def _check(graph: str, place: int, found: torch.Tensor, wanted: torch.Tensor) -> None:
    limit = _LIMITS.get(found.dtype, 0.0)
    error = _relative_l2(found, wanted)
    if not error <= limit:  # NaN too
        raise EnvironmentNotFitError(
            f"graph {graph}: output {place} of the captured graph differs from the eager one, "
            f"expected a relative L2 of at most {limit:g}, found {error:.3g}; leave out --capture"
        )


def _relative_l2(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found, wanted = (tensor.cpu().double() for tensor in (found, wanted))
    scale = float(wanted.norm())
    return float((found - wanted).norm()) / (scale or 1.0)
