"""The process that owns a device: runs the real engine for runtime/engines/worker.py, and ends at the first error.

It is started with the number of an inherited socket, over which a Job comes first and Messages after it, and with a
folder of its own to work in.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from runtime.artifact import Artifact
from runtime.engines import load_engine
from runtime.engines.base import Engine
from runtime.engines.channel import Job, Message, Reply
from runtime.engines.probe import Work
from runtime.engines.profile import Profile
from runtime.errors import AtlasportError, InputError
from runtime.manifest import TensorSpec

_WATCH_S = 1.0
# Names of operators in what torch and CANN say: aten::gelu, npu::npu_format_cast, aclnnMatmul.
_OPERATOR = re.compile(r"\b(?:aten|npu)::\w+(?:\.\w+)?|\baclnn[A-Z]\w*")
# TorchScript's own tracebacks mark the call that failed: `_5 = torch.gelu(x)` over a line of tildes.
_MARKED = re.compile(r"torch\.(\w+)\([^\n]*\n[ ~]*~+ <--- HERE")
_RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): ", re.MULTILINE)


class Server:
    """Carries out messages on an engine; tensors, events and bound graphs are known by number."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._objects: dict[int, Any] = {}
        self._marks: dict[int, Any] = {}
        self.graph: str | None = None

    def carry_out(self, message: Message) -> Any:
        """Return the result of an operation."""
        for number in message.dropped:
            self._objects.pop(number, None)
        return getattr(self, f"_{message.operation}")(*message.arguments)

    def _open(self, graph: str) -> None:
        self.graph = graph
        self._engine.open(graph)

    def _put(self, number: int, array: Any, dtype: Any) -> None:
        self._objects[number] = self._engine.put(array, dtype)

    def _get(self, number: int) -> Any:
        return self._engine.get(self._objects[number])

    def _shape(self, number: int) -> tuple[int, ...]:
        return tuple(self._objects[number].shape)

    def _zeros(self, number: int, spec: TensorSpec) -> None:
        self._objects[number] = self._engine.zeros(spec)

    def _write_rows(self, cache: int, rows: int, at: int, count: int, start: int) -> None:
        self._engine.write_rows(self._objects[cache], self._objects[rows], at, count, start)

    def _bind(self, number: int, graph: str, fixed: Mapping[str, int]) -> None:
        self.graph = graph
        self._objects[number] = self._engine.bind(graph, self._named(fixed))

    def _call(self, number: int, graph: str, given: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        self.graph = graph
        self._keep(outputs, self._objects[number](self._named(given)))

    def _run(self, graph: str, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        self.graph = graph
        self._keep(outputs, self._engine.run(graph, self._named(inputs)))

    def _synchronize(self) -> None:
        self._engine.synchronize()

    def _take_profile(self) -> Profile:
        return self._engine.take_profile()

    def _memory(self) -> Any:
        return self._engine.probe.memory()

    def _free_memory(self) -> int | None:
        return self._engine.probe.free_memory()

    def _shapes(self) -> dict[str, int]:
        return self._engine.probe.shapes()

    def _operators(self) -> int:
        return self._engine.probe.operators()

    def _put_waits(self) -> int:
        return self._engine.probe.put_waits()

    def _work(self) -> dict[str, Work]:
        return self._engine.probe.work()

    def _mark(self, number: int) -> None:
        self._marks[number] = self._engine.probe.mark()

    def _seconds(self, start: int, end: int) -> float:
        return self._engine.probe.seconds(self._marks.pop(start), self._marks.pop(end))

    def _named(self, numbers: Mapping[str, int]) -> dict[str, Any]:
        return {name: self._objects[number] for name, number in numbers.items()}

    def _keep(self, numbers: Mapping[str, int], values: Mapping[str, Any]) -> None:
        for name, number in numbers.items():
            self._objects[number] = values[name]


def failure(error: Exception, *, opened: bool, graph: str | None) -> Reply:
    """Return the last reply: an error for the user as it is, one of the device by its first line and operator.

    Until the engine is open, every error of this project says why the machine does not fit.
    """
    if isinstance(error, InputError) or (isinstance(error, AtlasportError) and not opened):
        return Reply(refused=error)
    text = str(error).strip()
    said = text
    if "Traceback of TorchScript" in text and (raised := list(_RAISED.finditer(text))):
        said = text[raised[-1].end() :]
    line = next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)
    named = _OPERATOR.search(said)
    marked = _MARKED.search(text)
    operator = named[0] if named else f"aten::{marked[1]}" if marked else None
    return Reply(reason=line.rstrip("."), graph=graph, operator=operator)


def serve(connection: Connection, folder: Path) -> bool:
    """Carry out messages in `folder` until the other end closes; return whether nothing failed."""
    job: Job = connection.recv()
    server = None
    try:
        artifact = _without_working_directory(job.artifact)
        os.chdir(folder)
        engine = load_engine(artifact, job.engine, job.device, job.threads, job.settings)
        connection.send(Reply(result=engine.probe.facts))
        server = Server(engine)
        while (message := _next(connection)) is not None:
            result = server.carry_out(message)
            if message.answer:
                connection.send(Reply(result=result))
    except Exception as error:  # noqa: BLE001 - whatever it is, the device's state is unknown now
        with suppress(OSError):
            connection.send(failure(error, opened=server is not None, graph=server.graph if server else None))
        return False
    return True


def _next(connection: Connection) -> Message | None:
    """Return the next message, None where the other end is closed."""
    try:
        message: Message = connection.recv()
    except (EOFError, OSError):
        return None
    return message


def _without_working_directory(artifact: Artifact) -> Artifact:
    """Return the same artifact by paths that mean the same in any folder; so do those to import from."""
    sys.path[:] = map(os.path.abspath, sys.path)
    return replace(artifact, path=artifact.path.absolute(), blobs=artifact.blobs and artifact.blobs.absolute())


def _end_with(parent: int, folder: Path) -> None:
    """End this process when its parent has ended, even in the middle of a call of the device."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def main() -> None:
    """Serve the socket whose number is the first argument, in the folder that is the second."""
    folder = Path(sys.argv[2])
    # An interrupt at the terminal is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(), folder), daemon=True).start()
    with Connection(int(sys.argv[1])) as connection:
        if not serve(connection, folder):
            # At once: to release a device that has failed may hang.
            sys.stderr.flush()
            os._exit(1)


if __name__ == "__main__":
    main()
