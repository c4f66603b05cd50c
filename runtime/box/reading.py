"""Reads recordings in a process of its own, under a memory limit: a file that kills its decoder does not end serving.

What comes back is never unpickled: the answers are numbers, samples or a line of text, since a decoder that a hostile
file has taken over is not to be believed.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from runtime.audio import Audio, open_audio
from runtime.engines.base import Floats
from runtime.errors import EnvironmentNotFitError, InputError
from runtime.results import AudioInfo

# A long mp3 takes 10 MB, as any other recording; tags and headers that lie ask for gigabytes.
READ_MEMORY_BYTES = 256 * 2**20
# One answer: 10 s of samples, at any rate that a model takes.
_MAX_ANSWER_BYTES = 64 * 2**20
_GIVEN, _REFUSED = b"+", b"-"
_END_S = 10.0
# So the kernel, short of memory, ends this process before the one that holds the model.
_FIRST_TO_GO = "1000"


class ReaderDiedError(EnvironmentNotFitError):
    """The process that reads recordings ended while it read one."""


@dataclass(frozen=True, kw_only=True)
class RemoteAudio(Audio):
    """A recording that is read by the other process."""

    reader: RecordingReader

    def blocks(self, rate: int, start_s: float = 0.0, end_s: float | None = None) -> Iterator[Floats]:
        """Yield what `Audio.blocks` does, and raise what it raises, or `ReaderDiedError`."""
        number = int(self.reader.ask({"blocks": [rate, start_s, end_s]}))
        while len(samples := self.reader.ask_samples({"next": number})):
            yield samples


class RecordingReader:
    """The process and the connection to it. It is started when it is needed, and again after it died.

    Parameters
    ----------
    memory_bytes : int
        What reading may take, beyond what the process has once it has started.

    """

    def __init__(self, memory_bytes: int = READ_MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def open(self, path: Path, *, accept_damaged: bool = False) -> RemoteAudio:
        """Check a recording, as `open_audio` does, and return it; the one that was open before is closed.

        Raises
        ------
        InputError
            It is not a recording that can be read, or reading it takes more memory than it may.
        ReaderDiedError
            The process ended while it read it.

        """
        answer = self.ask({"open": str(path), "accept_damaged": accept_damaged})
        frames, rate, duration_s, remark = answer.split(" ", maxsplit=3)
        info = AudioInfo(str(path), float(duration_s), int(rate), remark)
        return RemoteAudio(path, info, int(frames), (), reader=self)

    def ask(self, question: dict[str, Any]) -> str:
        """Send a question to the process and return the line that it answers; raises as `open`."""
        return self._exchanged(question).decode(errors="replace")

    def ask_samples(self, question: dict[str, Any]) -> Floats:
        """Send a question that samples answer, f32 [n]; n is 0 at the recording's end; raises as `open`."""
        return np.frombuffer(self._exchanged(question), np.float32)

    def close(self) -> None:
        """End the process, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _exchanged(self, question: dict[str, Any]) -> bytes:
        connection = self._connection or self._started()
        try:
            connection.send_bytes(json.dumps(question).encode())
            answer = connection.recv_bytes(_MAX_ANSWER_BYTES)
        except (EOFError, OSError) as error:
            raise ReaderDiedError(f"the process that reads recordings {self._end()}") from error
        if answer[:1] == _REFUSED:
            raise InputError(answer[1:].decode(errors="replace"))
        return answer[1:]

    def _started(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-m", "runtime.box.reading", str(theirs.fileno()), str(self._memory_bytes)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders print what they think of a file
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the one that serves
            )
        self._connection = Connection(ours.detach())
        return self._connection

    def _end(self) -> str:
        """Close what has died and return how it ended."""
        process = self._process
        self.close()
        code = process.returncode if process else 0
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


class _Answering:
    """The other side: one recording is open at a time, and read piece by piece."""

    def __init__(self) -> None:
        self._audio: Audio | None = None
        self._streams: list[Iterator[Floats]] = []

    def answer(self, question: dict[str, Any]) -> bytes:
        """Return the answer to a question."""
        if "open" in question:
            self._streams.clear()
            self._audio = open_audio(Path(question["open"]), accept_damaged=question["accept_damaged"])
            info = self._audio.info
            return f"{self._audio.frames} {info.sample_rate} {info.duration_s!r} {info.remark}".encode()
        if "blocks" in question and self._audio is not None:
            self._streams.append(self._audio.blocks(*question["blocks"]))
            return b"%d" % (len(self._streams) - 1)
        samples = next(self._streams[question["next"]], None)
        return b"" if samples is None else samples.astype(np.float32).tobytes()


def _main() -> None:
    connection, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO, encoding="ascii")
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answering = _Answering()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            question = json.loads(connection.recv_bytes())
            try:
                answer = _GIVEN + answering.answer(question)
            except InputError as error:
                answer = _REFUSED + str(error).encode(errors="replace")
            except MemoryError:
                limit_mib = memory // 2**20
                answer = (
                    _REFUSED + b"expected a recording that is read in %d MiB, found one that takes more" % limit_mib
                )
            connection.send_bytes(answer)


if __name__ == "__main__":
    _main()
