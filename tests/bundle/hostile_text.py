"""Texts that cost more than they weigh, and what a command spends on one, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toy_bundle import FILES, sha256_of, toy_manifest

from runtime.bundle.ustar import header, padding

REPOSITORY = Path(__file__).resolve().parents[2]
# Not ru_maxrss: a child begins with its parent's.
_COMMAND = """
import atexit, os, sys
report = int(sys.argv.pop(1))
@atexit.register
def _say():
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    os.write(report, f"{peak} {sum(os.times()[:2])}".encode())
from atlasport.cli import main
main()
"""


@dataclass(frozen=True)
class Spent:
    """How a command ended and what it took: peak resident bytes, seconds of the processor."""

    code: int
    out: str
    err: str
    peak: int
    cpu_s: float


def spent(*arguments: str | Path) -> Spent:
    """Run `atlasport ARGUMENTS` to its end."""
    reader, writer = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, str(writer), *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        pass_fds=(writer,),
        capture_output=True,
        timeout=240,
        check=False,
    )
    os.close(writer)
    with os.fdopen(reader) as file:
        peak, cpu_s = file.read().split()
    return Spent(done.returncode, done.stdout.decode(), done.stderr.decode(), int(peak), float(cpu_s))


def _toy(**changes: Any) -> bytes:
    raw: Mapping[str, Any] = json.loads(toy_manifest().to_bytes()) | changes
    return (json.dumps(raw, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def _entries(count: int) -> bytes:
    return b'{"format_version":1,"files":{' + b",".join(b'"%d":{}' % n for n in range(count)) + b"}}"


def _with_files(count: int, folder: str, entry: Mapping[str, Any] | None = None) -> bytes:
    files = {f"artifact/{folder}{n}": entry or {"size": 1, "sha256": f"{n:064x}"} for n in range(count)}
    return _toy(files=json.loads(toy_manifest().to_bytes())["files"] | files)


def _delta(piece: Mapping[str, Any], count: int) -> bytes:
    patch = {"sha256": "2" * 64, "size": 0, "pieces": [piece] * count}
    patches = {sha256_of(FILES["README.md"]): patch}
    return _toy(base={"blobs": ["1" * 64], "manifest_sha256": "0" * 64, "version": "0.0.1", "patches": patches})


def manifests() -> dict[str, bytes]:
    """Manifests of a bundle: as large as the reader once took, and the worst that it takes now."""
    piece = {"source": "1" * 64, "offset": 0, "size": 1}
    return {
        "16 MB of empty lists": b'{"format_version":1,"a":[' + b"[]," * 5_300_000 + b"0]}",
        "a million empty entries": _entries(10**6),
        "fewer empty entries": _entries(17_900),
        "unknown keys": b'{"format_version":1,' + b",".join(b'"%d":0' % n for n in range(35_000)) + b"}",
        "a long string": _toy(family="\u20ac" * 1_390_000),
        "a string too long": _toy(family="\u20ac" * 5_000_000),
        "10,000 files": _with_files(10_000, ""),
        "deep files": _with_files(9000, "d/" * 450),
        "fewer deep files": _with_files(1900, "d/" * 450),
        "bad files": _with_files(11_900, "", {"size": -1, "sha256": "x"}),
        "60,000 pieces": _delta(piece, 60_000),
        "8000 pieces": _delta(piece, 8000),
        "empty pieces": _delta({}, 17_500),
        "deep JSON": b"[" * 35_000 + b"]" * 35_000,
        "a long number": _toy(base=None).replace(b'"memory_bytes": 0', b'"memory_bytes": ' + b"9" * 4_000_000),
    }  # fmt: skip


def archive_of(manifest: bytes, signature: bytes | None = None) -> bytes:
    """A bundle that begins rightly."""
    members = [("atlas.json", manifest), *([] if signature is None else [("atlas.json.sig", signature)])]
    return b"".join(header(name, len(data)) + data + padding(len(data)) for name, data in members) + bytes(10240)
