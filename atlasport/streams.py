"""Standard streams as a pipeline leaves them: closed, without a reader, on a full disk, with names that are no text."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

from runtime.errors import EnvironmentNotFitError

BROKEN_PIPE = 128 + signal.SIGPIPE


class ReaderGoneError(BaseException):
    """Whoever reads the output has left, as `head` does.

    No Exception: it is to pass those who report or retry, click too, which would leave with 1, "a gate failed".
    """


class _Pipe(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            raise ReaderGoneError from None


def prepare_streams() -> None:
    """Make stdout and stderr such that they write any name, and raise ReaderGoneError where nobody reads.

    Bytes of a name that are no UTF-8 are written as backslash, udc and two digits, which means the same in JSON.

    Raises
    ------
    EnvironmentNotFitError
        stdout is closed: results would be lost, or get into the first file that is opened.

    """
    closed = [stream is None for stream in (sys.stdin, sys.stdout, sys.stderr)]
    for number, is_closed in enumerate(closed):
        if is_closed:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    if closed[0]:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if closed[2]:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if closed[1]:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        raise EnvironmentNotFitError("stdout is closed; send it to a file, or to /dev/null")
    sys.stdout, sys.stderr = _prepared(sys.stdout), _prepared(sys.stderr)


def leave_quietly() -> NoReturn:
    """End without a word, with the 141 that shells give for SIGPIPE.

    Not by the signal: to systemd that would be a clean end, after which it does not start serve-dir again.
    """
    os._exit(BROKEN_PIPE)


def let_go() -> None:
    """Drop what stdout could not write: Python would try again at its end, and leave with 120."""
    try:
        sys.stdout.flush()
    except (OSError, ReaderGoneError):
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepared(stream: Any) -> Any:
    try:
        number, encoding = stream.fileno(), stream.encoding
        by_lines = stream.line_buffering or stream.write_through  # PYTHONUNBUFFERED
    except (OSError, AttributeError):  # a test's
        return stream
    stream.flush()
    raw = _Pipe(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=by_lines
    )
