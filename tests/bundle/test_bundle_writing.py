from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from toy_bundle import FILES, accept, sha256_of, toy_bundle, toy_manifest

from runtime.bundle.archive import FileParts, open_bundle, write_bundle
from runtime.bundle.manifest import Base, Patch, Piece
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, InputError

# --- deltas -----------------------------------------------------------------------------------------------------------


def delta(folder: Path, there: bytes, **changes: object) -> tuple[Path, Path, bytes]:
    """A bundle whose weights are 100 bytes of its own and the rest of an old blob, and the box's folder of blobs."""
    new = b"n" * 100 + there[10:]
    blobs = folder / "blobs"
    blobs.mkdir()
    (blobs / sha256_of(there)).write_bytes(there)
    patch = {
        "sha256": sha256_of(b"n" * 100),
        "size": 100,
        "pieces": (
            {"source": None, "offset": 0, "size": 60},
            {"source": None, "offset": 60, "size": 40},
            {"source": sha256_of(there), "offset": 10, "size": len(there) - 10},
        ),
    }
    base = {
        "version": "0.9.0",
        "manifest_sha256": "0" * 64,
        "blobs": (sha256_of(there),),
        "patches": {sha256_of(new): patch | changes},
    }
    files = {path: data for path, data in FILES.items() if "safetensors" not in path} | {"artifact/w": new}
    manifest = toy_manifest(files, base=base)
    (folder / "own").write_bytes(b"x" + b"n" * 100 + b"x")
    sources = {sha256_of(data): data for data in files.values()}
    sources[patch["sha256"]] = FileParts(folder / "own", ((1, 70), (71, 30)))
    write_bundle(folder / "delta.atlas", manifest, None, sources)
    return folder / "delta.atlas", blobs, new


def test_a_patch_takes_the_rest_from_the_box(tmp_path: Path):
    there = random.Random(3).randbytes(3_000_000)
    path, blobs, new = delta(tmp_path, there)
    assert path.stat().st_size < 20_000
    with open_bundle(path) as reader:
        reader.check()
        found = {sha256: b"".join(chunks) for sha256, chunks in reader.blobs(blobs)}
        assert found.keys() == reader.manifest.blobs.keys()
    assert found[sha256_of(new)] == new


@pytest.mark.parametrize("fault", ["missing", "changed", "short", "no folder"])
def test_a_patch_with_another_blob_on_the_box_is_refused(tmp_path: Path, fault: str):
    there = random.Random(3).randbytes(5000)
    path, blobs, _ = delta(tmp_path, there)
    source = blobs / sha256_of(there)
    if fault == "missing":
        source.unlink()
    elif fault == "changed":
        source.write_bytes(there[:-1] + b"?")
    elif fault == "short":
        source.write_bytes(there[:-1])
    with open_bundle(path) as reader, pytest.raises((DamagedArtifactError, InputError)) as caught:
        for _ in reader.blobs(None if fault == "no folder" else blobs):
            pass
    assert "\n" not in str(caught.value)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_blob_that_changed_is_not_written_and_the_old_bundle_stays(tmp_path: Path):
    path = toy_bundle(tmp_path / "toy.atlas")
    before = path.read_bytes()
    sources = {sha256_of(data): data for data in FILES.values()}
    for wrong in (b"card", b"card\n" * 101, b"CARD\n" * 100):
        (tmp_path / "card").write_bytes(wrong)
        with pytest.raises(DamagedArtifactError, match="changed while it was read"):
            write_bundle(path, toy_manifest(), None, sources | {sha256_of(FILES["README.md"]): tmp_path / "card"})
        assert path.read_bytes() == before
        assert sorted(item.name for item in tmp_path.iterdir()) == ["card", "toy.atlas"]


def test_two_writers_of_one_file(tmp_path: Path):
    with (tmp_path / ".toy.atlas.partial").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(EnvironmentNotFitError, match="another freeze"):
            toy_bundle(tmp_path / "toy.atlas")
    # The rest of a killed process is taken over.
    (tmp_path / ".toy.atlas.partial").write_bytes(b"x" * 10**6)
    accept(toy_bundle(tmp_path / "toy.atlas"))
    assert [item.name for item in tmp_path.iterdir()] == ["toy.atlas"]


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentNotFitError, match="cannot be written"):
        toy_bundle(tmp_path / "file" / "toy.atlas")
    with pytest.raises(EnvironmentNotFitError, match="cannot be written"):
        toy_bundle(Path("/proc/toy.atlas"))


LARGE = """
import hashlib, sys
from pathlib import Path
from toy_bundle import FILES, entry, sha256_of, toy_manifest
from runtime.bundle.archive import open_bundle, write_bundle

folder = Path(sys.argv[1])
digest = hashlib.sha256()
with (folder / "large").open("wb") as file:
    for index in range(1024):
        file.write(block := bytes([index % 251]) * 2**20)
        digest.update(block)
manifest = toy_manifest()
files = dict(manifest.files) | {"artifact/large": {"size": 2**30, "sha256": digest.hexdigest()}}
manifest = toy_manifest(files=None, **{"model": "toy"}).model_validate(manifest.model_dump() | {"files": files})
sources = {sha256_of(data): data for data in FILES.values()} | {digest.hexdigest(): folder / "large"}
write_bundle(folder / "large.atlas", manifest, None, sources)
with open_bundle(folder / "large.atlas") as reader:
    for _, chunks in reader.blobs():
        for _ in chunks:
            pass
# Not ru_maxrss: a child begins with its parent's.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_blobs(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", LARGE, tmp_path],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 150e6


@pytest.mark.parametrize("offset", [1, 2999, 2**31, 2**62])
def test_a_patch_that_takes_what_its_source_has_not(tmp_path: Path, offset: int) -> None:
    """Some of these a file system does not even seek to."""
    source, new = FILES["README.md"], FILES["artifact/weights.safetensors"]
    piece = Piece(source=sha256_of(source), offset=offset, size=len(source))
    own = Piece(source=None, offset=0, size=len(new) - len(source))
    patch = Patch(sha256=sha256_of(b"x" * own.size), size=own.size, pieces=(own, piece))
    blobs = (sha256_of(source),)
    base = Base(version="0.9.0", manifest_sha256="0" * 64, blobs=blobs, patches={sha256_of(new): patch})
    manifest = toy_manifest(base=base)
    sources = {sha256_of(data): data for data in (*FILES.values(), b"x" * own.size)}
    write_bundle(tmp_path / "x.atlas", manifest, None, {name: sources[name] for name in manifest.members})
    (tmp_path / sha256_of(source)).write_bytes(source)
    with open_bundle(tmp_path / "x.atlas") as reader, pytest.raises(DamagedArtifactError, match="behind its end"):
        dict(reader.blobs(tmp_path))


KILLED = """
import sys
from pathlib import Path
from toy_bundle import toy_bundle
for version in range(1, 10_000):
    toy_bundle(Path(sys.argv[1]), None, version=f"{version}.0.0")
    print(version, flush=True)
"""


def test_kill_9_leaves_the_old_bundle_or_the_new_one(tmp_path: Path):
    rng = random.Random(5)
    path = tmp_path / "toy.atlas"
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), path],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        printed = [int(line) for line in process.stdout.read().split()]
        process.wait()
        process.stdout.close()
        accept(path)
        with open_bundle(path) as reader:
            assert int(reader.manifest.version.partition(".")[0]) >= max(printed, default=1)
    toy_bundle(path)
    assert [item.name for item in tmp_path.iterdir()] == ["toy.atlas"]
