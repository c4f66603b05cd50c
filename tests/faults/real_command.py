"""The real command line in a forked child: no start-up to wait for, so that hundreds of kills are minutes."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from atlasport.cli import main


@dataclass(frozen=True)
class Outcome:
    """How a command ended; a killed one has a negative code."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Command:
    """A running `atlasport ARGUMENTS`; `before` is called in the child first (another user, a lying disk)."""

    def __init__(self, *arguments: str | Path, before: Callable[[], object] | None = None) -> None:
        self._began = time.perf_counter()
        self._files = [os.memfd_create(name) for name in ("out", "err")]
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._child([str(argument) for argument in arguments], before)

    def kill(self, after_s: float) -> None:
        time.sleep(after_s)
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Outcome:
        _, status = os.waitpid(self.pid, 0)
        seconds = time.perf_counter() - self._began
        said = [os.pread(file, 2**20, 0).decode(errors="replace") for file in self._files]
        for file in self._files:
            os.close(file)
        return Outcome(os.waitstatus_to_exitcode(status), said[0], said[1], seconds)

    def _child(self, arguments: list[str], before: Callable[[], object] | None) -> NoReturn:
        code = 99
        try:
            for number, file in enumerate(self._files, start=1):
                os.dup2(file, number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            sys.argv = ["atlasport", *arguments]
            if before is not None:
                before()
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the child must not go on as a second parent
            print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def run(*arguments: str | Path, before: Callable[[], object] | None = None) -> Outcome:
    """Run a command to its end."""
    return Command(*arguments, before=before).wait()


def done(*arguments: str | Path) -> Outcome:
    """Run a command that must succeed."""
    outcome = run(*arguments)
    assert outcome.code == 0, f"{arguments[0]}: exit {outcome.code}: {outcome.err}{outcome.out}"
    return outcome


def preload(*arguments: str | Path) -> Outcome:
    """Run a command, and import here what it imported; its engines and their threads stay in the child."""
    names, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(names)
        outcome = 99
        try:
            sys.argv = ["atlasport", *map(str, arguments)]
            with open(os.devnull, "w") as nothing:  # noqa: PTH123
                sys.stdout = sys.stderr = nothing
                main()
        except SystemExit as end:
            outcome = end.code if isinstance(end.code, int) else 0
        finally:
            os.write(writer, "\n".join(name for name in list(sys.modules) if name != "__main__").encode())
            os._exit(outcome)
    os.close(writer)
    with os.fdopen(names) as file:
        modules = file.read().split()
    _, status = os.waitpid(child, 0)
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return Outcome(os.waitstatus_to_exitcode(status), "", "", 0)
