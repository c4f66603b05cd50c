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


class DamagedArtifactError(AtlasportError):
    """An artifact's files are not those that its manifest names."""

    exit_code = ExitCode.DAMAGED
