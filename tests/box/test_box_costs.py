"""What an install of a large bundle costs."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.box.install import Trust, install
from runtime.bundle.archive import open_bundle, write_bundle
from runtime.manifest import FileEntry

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE = 500 * 2**20


@pytest.fixture(scope="module")
def large(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle with a blob of 500 MiB more, and the blob."""
    folder = tmp_path_factory.mktemp("large")
    blob = folder / "blob"
    digest = hashlib.sha256()
    with blob.open("wb") as file:
        for _ in range(SIZE // 2**20):
            block = os.urandom(2**20)
            digest.update(block)
            file.write(block)
    with open_bundle(bundle) as reader:
        files = reader.manifest.files
        paths = {}
        for sha256, chunks in reader.blobs():
            paths[sha256] = folder / sha256
            paths[sha256].write_bytes(b"".join(chunks))
        big = FileEntry(size=SIZE, sha256=digest.hexdigest())
        manifest = reader.manifest.model_copy(update={"files": {**files, "artifact/big.bin": big}})
    write_bundle(folder / "large.atlas", manifest, None, {**paths, big.sha256: blob})
    return folder / "large.atlas", blob


def _moved(act: Callable[[], object]) -> dict[str, int]:
    """Bytes that this process read and wrote meanwhile, as the kernel counts them."""

    def counted() -> dict[str, int]:
        lines = Path("/proc/self/io").read_text().splitlines()
        return {name: int(count) for name, count in (line.split(": ") for line in lines)}

    before = counted()
    act()
    return {name: count - before[name] for name, count in counted().items()}


@pytest.mark.slow
def test_an_install_reads_each_byte_once_and_writes_it_once(large: tuple[Path, Path], tmp_path: Path) -> None:
    """What a copy with a hash costs; seconds say more about the machine."""
    bundle, _ = large
    size = bundle.stat().st_size
    moved = _moved(lambda: install(bundle, tmp_path / "box", Trust(allow_unsigned=True)))
    assert size <= moved["rchar"] < 1.02 * size
    assert size - 2**20 < moved["wchar"] < 1.02 * size


@pytest.mark.slow
def test_an_install_needs_little_memory(large: tuple[Path, Path], tmp_path: Path) -> None:
    """Of the real process, the interpreter and all imports included."""
    bundle, _ = large
    process = subprocess.run(
        [sys.executable, "-m", "atlasport", "install", bundle, "--root", tmp_path / "box", "--allow-unsigned"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    peak = re.search(r"peak RSS (\d+) MB", process.stdout)
    assert peak is not None
    sys.stdout.write(process.stdout)
    assert int(peak[1]) < 300
    assert (tmp_path / "box" / "models").is_dir()
