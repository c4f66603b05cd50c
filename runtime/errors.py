"""Errors that a user can act on. Each owns its message: what was expected, what was found, what to do next.

The command line prints the message as one line and leaves with `exit_code`; a traceback needs --debug.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    OK = 0
    GATE_FAILED = 1
    BAD_INPUT = 2
    ENVIRONMENT = 3
    DAMAGED = 4


class AtlasportError(Exception):
    """Base of every error with a one-line message for the user."""

    exit_code = ExitCode.BAD_INPUT


class InputError(AtlasportError):
    """Bad usage or bad input: model name, checkpoint, audio file, option."""


class GateError(AtlasportError):
    """A check of results failed: source parity at export, a gate of verify."""

    exit_code = ExitCode.GATE_FAILED


class EnvironmentNotFitError(AtlasportError):
    """The machine cannot do it: no device, a package missing, disk full, no permission."""

    exit_code = ExitCode.ENVIRONMENT


class NoDeviceError(EnvironmentNotFitError):
    """The device cannot be used at all: its package is missing, does not import, or sees no such device."""


class DeviceFailedError(EnvironmentNotFitError):
    """A device raised an error, or the process that owns it died. Nothing that it computed may be used.

    Parameters
    ----------
    device : str
        Such as `npu:0`.
    reason : str
        What the device said, on one line.
    graph, case, operator : str or None
        Where it showed. Devices work ahead of the host, so the operator may be a later one than the one that failed.

    """

    def __init__(
        self, device: str, reason: str, graph: str | None = None, case: str | None = None, operator: str | None = None
    ) -> None:
        self.device = device
        self.reason = reason
        self.graph = graph
        self.case = case
        self.operator = operator
        places = (("graph", graph), ("case", case), ("operator", operator))
        where = ", ".join(f"{kind} {name}" for kind, name in places if name)
        super().__init__(
            f"{device} failed{f' in {where}' if where else ''}: {reason}; nothing that it computed is used, "
            "try --restart; ASCEND_LAUNCH_BLOCKING=1 names the operator that failed first"
        )

    def in_case(self, case: str) -> DeviceFailedError:
        """Return the error with the case that was running."""
        return DeviceFailedError(self.device, self.reason, self.graph, case, self.operator)


class DamagedArtifactError(AtlasportError):
    """An artifact's files are not those that its manifest names."""

    exit_code = ExitCode.DAMAGED


class OtherFormatError(DamagedArtifactError):
    """An artifact is of another version of atlasport, which writes another manifest format."""
