"""The process that owns a device, seen from outside: start it, send it operations, hear of its end.

Operations are sent without waiting, so that the device works while the host goes on; only those that bring something
back wait. What the process prints goes into a file that is read before any answer is believed: older torch_npu wheels
say nowhere else that an operator ran on the CPU.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from runtime.artifact import Artifact
from runtime.engines.base import EngineSettings
from runtime.errors import AtlasportError, DeviceFailedError

# Read when torch and torch_npu are loaded, so they are set before the process starts.
ENVIRONMENT = {
    # Newer wheels raise an error where an operator has no kernel on the device; older ones only warn.
    "TORCH_NPU_FALLBACK_CPU_DISABLE": "1",
    "TORCH_NPU_DISABLED_WARNING": "0",
    # torch_npu is imported by name, so that its failure can be told apart from one of torch.
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    "PYTHONUNBUFFERED": "1",
}
# From RANK 1 on, torch_npu prints no warning of a fallback, which would go unseen with wheels that only warn.
_DROPPED = ("RANK",)
FALLBACK_WARNING = r"will fall ?back to (?:run on the )?CPU"
_FALLBACK_LINE = re.compile(rf"^.*{FALLBACK_WARNING}", re.MULTILINE)
_OPERATOR = re.compile(r"operator '?([\w:.]*\w)")
_END_S = 30.0
_TAIL = 4096


def worker_environment() -> dict[str, str]:
    """Return the variables of a process that owns a device."""
    return {name: value for name, value in os.environ.items() if name not in _DROPPED} | ENVIRONMENT


@dataclass(frozen=True)
class Job:
    """What the process opens."""

    artifact: Artifact
    engine: str
    device: str
    threads: int | None
    settings: EngineSettings


@dataclass(frozen=True)
class Message:
    """One operation of the engine; `dropped` are numbers of objects that the process may forget before it."""

    operation: str
    arguments: tuple[Any, ...]
    dropped: tuple[int, ...]
    answer: bool


@dataclass(frozen=True)
class Reply:
    """A result; or an error of the user's; or what the device said when it failed. After an error the process ends."""

    result: Any = None
    refused: AtlasportError | None = None
    reason: str | None = None
    graph: str | None = None
    operator: str | None = None


class Channel:
    """A running process and the connection to it. It ends when this end of the connection is closed, however.

    Parameters
    ----------
    job : Job
        What it opens.

    """

    def __init__(self, job: Job) -> None:
        self.device = job.device
        # Objects of the process that are needed no more; appended to by destructors, sent with the next message.
        self.dropped: deque[int] = deque()
        self.idle = True
        self.graph: str | None = None
        self._failure: AtlasportError | None = None
        self._waiting = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._log_read = 0
        # CANN's operator compiler writes kernel_meta/ where the process stands, which may be read-only.
        self._folder = tempfile.TemporaryDirectory(prefix="atlasport-worker-", ignore_cleanup_errors=True)
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-m", "runtime.engines.worker_process", str(theirs.fileno()), self._folder.name],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                env=worker_environment(),
            )
        self._connection = Connection(ours.detach())
        self._transmit(job)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def tell(self, operation: str, *arguments: Any) -> None:
        """Send an operation; the device may fail at it later.

        Raises
        ------
        DeviceFailedError
            It has failed already.

        """
        self.idle = False
        self._transmit(self._message(operation, arguments, answer=False))

    def ask(self, operation: str, *arguments: Any) -> Any:
        """Send an operation and return its result, which comes after all operations before it.

        Raises
        ------
        AtlasportError
            The operation was refused.
        DeviceFailedError
            The device failed, at this operation or at an earlier one.

        """
        self._transmit(self._message(operation, arguments, answer=True))
        return self.receive()

    def receive(self) -> Any:
        """Return the next result."""
        self._waiting = True
        try:
            reply: Reply = self._connection.recv()
        except (EOFError, OSError):
            self._end(self._died())
        self._waiting = False
        self.idle = True
        if operator := self._forward_log():
            self._process.kill()
            reason = "it has no kernel on the device and ran on the CPU"
            self._end(DeviceFailedError(self.device, reason, reply.graph or self.graph, operator=operator))
        if reply.refused:
            self._end(reply.refused)
        if reply.reason is not None:
            self._end(DeviceFailedError(self.device, reply.reason, reply.graph, operator=reply.operator))
        return reply.result

    def close(self) -> None:
        """End the process."""
        if self._failure is None:
            self._failure = DeviceFailedError(self.device, "its process was closed")
        self._connection.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not self._log.closed:
            self._forward_log()
            self._log.close()
        self._folder.cleanup()

    def _message(self, operation: str, arguments: tuple[Any, ...], *, answer: bool) -> Message:
        dropped = tuple(self.dropped.popleft() for _ in range(len(self.dropped)))
        return Message(operation, arguments, dropped, answer)

    def _transmit(self, message: Job | Message) -> None:
        if self._failure is not None:
            raise self._failure
        if self._waiting:  # an interrupt left an answer behind
            self._process.kill()
            self._end(DeviceFailedError(self.device, "the last operation was interrupted", self.graph))
        try:
            self._connection.send(message)
        except OSError:
            self.receive()  # why it ended
            raise

    def _end(self, error: AtlasportError) -> None:
        """Give up the process and raise `error`, now and at every later operation."""
        self._failure = error
        self.close()
        raise error

    def _died(self) -> DeviceFailedError:
        """Return the failure for a process that ended without an answer."""
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        lines = os.pread(self._log.fileno(), _TAIL, max(0, os.fstat(self._log.fileno()).st_size - _TAIL)).split(b"\n")
        last = next((line.decode(errors="replace").strip() for line in reversed(lines) if line.strip()), "")
        return DeviceFailedError(self.device, f"its process ended by {how}{f': {last}' if last else ''}", self.graph)

    def _forward_log(self) -> str | None:
        """Pass on what the process has printed since; return the operator that it says has run on the CPU."""
        size = os.fstat(self._log.fileno()).st_size
        if size == self._log_read:
            return None
        text = os.pread(self._log.fileno(), size - self._log_read, self._log_read).decode(errors="replace")
        self._log_read = size
        sys.stderr.write(text)
        return fallback_operator(text)


def fallback_operator(text: str) -> str | None:
    """Return the operator that ran on the CPU, from torch_npu's warning somewhere in `text`; None without one."""
    line = _FALLBACK_LINE.search(text)
    if line is None:
        return None
    operator = _OPERATOR.search(line[0])
    return operator[1] if operator else "unknown"
