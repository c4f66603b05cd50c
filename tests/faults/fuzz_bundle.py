"""Fuzzes the reader of bundles with atheris, guided by coverage; atheris is no dependency and may be anywhere.

`PYTHONPATH=. python tests/faults/fuzz_bundle.py -max_total_time=60 [CORPUS]`: an exit code other than 0 is a bug.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["runtime.bundle"]):
    from runtime.bundle.archive import open_bundle
    from runtime.bundle.manifest import BundleManifest
    from runtime.bundle.ustar import header

from runtime.errors import DamagedArtifactError

FILE = os.memfd_create("bundle")
PATH = Path(f"/proc/self/fd/{FILE}")


def archive(data: bytes) -> None:
    """The bytes as a whole archive."""
    os.ftruncate(FILE, 0)
    os.pwrite(FILE, data, 0)
    with open_bundle(PATH) as reader:
        reader.check()


def with_header(data: bytes) -> None:
    """The bytes behind a good first header."""
    archive(header("atlas.json", len(data)) + data + bytes(-len(data) % 512))


def manifest(data: bytes) -> None:
    """The bytes as a manifest."""
    assert BundleManifest.from_bytes(data, "fuzzed").to_bytes() == data


def is_one_line(target: Callable[[bytes], None], data: bytes) -> bool:
    """Whether the input is read as it is, or refused by one line."""
    try:
        target(data)
    except DamagedArtifactError as error:
        return len(str(error).splitlines()) == 1
    return True


def one_input(data: bytes) -> None:
    """Try an input in every place."""
    assert all(is_one_line(target, data) for target in (archive, with_header, manifest))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
