"""What nobody has signed yet may cost 200 MB and 2 s at most: bundles, artifacts, .nemo files, checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_text import REPOSITORY, Spent, archive_of, manifests, spent
from parakeet_checkpoints import CONFIG, write_tar
from toy_bundle import toy_manifest

from runtime.bundle.archive import open_bundle
from runtime.bundle.signing import generate_key, sign
from runtime.errors import DamagedArtifactError
from runtime.manifest import FORMAT_VERSION, MANIFEST_NAME

LIMIT_BYTES, LIMIT_S = 200e6, 2.0
HOSTILE = manifests()


@pytest.fixture(scope="module")
def nothing() -> Spent:
    """What a command costs that finds nothing to read."""
    found = spent("inspect", "/nowhere")
    assert found.code == 2
    return found


def assert_cheap(found: Spent, nothing: Spent, *codes: int) -> str:
    assert found.code in codes, found.err
    (line,) = found.err.strip().splitlines()
    assert line.startswith("atlasport: ")
    assert len(line) < 600
    assert found.peak < LIMIT_BYTES
    assert found.cpu_s - nothing.cpu_s < LIMIT_S
    return line


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_an_unsigned_manifest(nothing: Spent, tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.atlas"
    path.write_bytes(archive_of(HOSTILE[name]))
    assert_cheap(spent("inspect", path), nothing, 4)


def test_the_signature_comes_before_the_structure(nothing: Spent, tmp_path: Path) -> None:
    """Signed by somebody else: nothing is said, because nothing is known, of what is wrong with the manifest."""
    ours, theirs = (generate_key(tmp_path / whose) for whose in ("ours", "theirs"))
    path, root = tmp_path / "x.atlas", tmp_path / "box"
    manifest = HOSTILE["fewer empty entries"]
    path.write_bytes(archive_of(manifest, sign(manifest, theirs[0])))
    for command in (("inspect", path), ("install", path, "--root", root)):
        line = assert_cheap(spent(*command, "--public-key", ours[1]), nothing, 4)
        assert "another key" in line
    with pytest.raises(DamagedArtifactError, match=r"atlas\.json: "):
        open_bundle(path, theirs[1])
    assert not root.exists()


@pytest.mark.slow
def test_a_hostile_signature(nothing: Spent, tmp_path: Path) -> None:
    _, public = generate_key(tmp_path / "keys")
    path = tmp_path / "x.atlas"
    for signature in (b'{"a":[' + b"[]," * 349_000 + b"0]}", b"[" * 2**20, b'{"":0,' * 170_000):
        path.write_bytes(archive_of(toy_manifest().to_bytes(), signature))
        assert_cheap(spent("inspect", path, "--public-key", public), nothing, 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cases", "unknown", "result"])
@pytest.mark.parametrize("count", [14_500, 1_400_000])
def test_an_artifact_s_manifest(nothing: Spent, tmp_path: Path, kind: str, count: int) -> None:
    """Of an artifact that somebody gives away; its digests are no secret, so they are no defence."""
    digests = {"format_version": FORMAT_VERSION, "content_sha256": "0" * 64, "export_sha256": "0" * 64}
    changed = {
        "cases": {"content": {"cases": [{}] * count}},
        "unknown": dict.fromkeys(map(str, range(count)), 0),
        "result": {"content": {}, "export": [[]] * count},
    }
    (tmp_path / MANIFEST_NAME).write_bytes(json.dumps(digests | changed[kind]).encode())
    assert_cheap(spent("run", tmp_path, REPOSITORY / "samples" / "short_en.wav"), nothing, 4)


def test_the_manifests_of_the_pocket_models_are_far_below_the_limit(
    sed_artifact: Path, pocket_artifact: Path, parakeet_artifact: Path
) -> None:
    for artifact in (sed_artifact, pocket_artifact, parakeet_artifact):
        data = (artifact / MANIFEST_NAME).read_bytes()
        assert sum(map(data.count, (b",", b"[", b"{"))) < 10_000


# Growth: torch, which reads what is behind these headers, takes more than the limit before anything is read.
GROWN = """
import sys, time
from pathlib import Path
from export.json_files import read_json
from export.nemo import NemoArchive
from export.safetensors_writer import stored_tensors
from runtime.errors import InputError
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
before = peak()
for path in map(Path, sys.argv[1:]):
    began, said = time.process_time(), ""
    try:
        {".nemo": NemoArchive, ".json": read_json, ".safetensors": stored_tensors}[path.suffix](path)
    except InputError as error:
        said = str(error)
    print(path.stem, len(said.splitlines()), len(said), time.process_time() - began)
print(peak() - before)
"""
CONFIGS = {
    "700,000 keys": b"".join(b"k%d: 1\n" % n for n in range(700_000)),
    "100,000 keys": b"".join(b"k%d: 1\n" % n for n in range(100_000)),
    "many maps": b"a: [" + b"{}," * 500_000 + b"]",
    "a number in base 60": b"a: 1" + b":1" * 900_000,
    "a long number": b"a: " + b"9" * 1_000_000,
    "good, keys": b"".join(b"k%d: 1\n" % n for n in range(29_000)),
    "good, numbers in base 60": b"a: [" + (b"1" + b":1" * 19 + b",") * 40_000 + b"]",
}
HEADERS = {
    "many lists": b'{"a":[' + b"[]," * 3_000_000 + b"0]}",
    "many entries": b"{" + b",".join(b'"%d":{}' % n for n in range(149_000)) + b"}",
    "a long name": b'{"' + b"x" * 8_000_000 + b'":0}',
    "spaces": b" " * 20_000_000,
}
TEXTS = {
    "lists": b'{"a":[' + b"[]," * 3_000_000 + b"0]}",
    "more spaces": b" " * 20_000_000,
    "a long text": b'{"a":"' + b"x" * 17_000_000 + b'"}',
}


@pytest.mark.slow
def test_checkpoints(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{name}.nemo", {CONFIG: data}) for name, data in CONFIGS.items()]
    for name, data in HEADERS.items():
        paths.append(tmp_path / f"{name}.safetensors")
        paths[-1].write_bytes(len(data).to_bytes(8, "little") + data)
    for name, data in TEXTS.items():
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_bytes(data)
    command = [sys.executable, "-c", GROWN, *map(str, paths)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    *lines, grown = done.stdout.splitlines()
    assert int(grown) < LIMIT_BYTES
    assert len(lines) == len(paths)
    for line in lines:
        name, count, length, seconds = line.rsplit(" ", 3)
        assert int(count) == (0 if name.startswith("good") else 1), line
        assert int(length) < 500 + len(str(tmp_path)), name
        assert float(seconds) < LIMIT_S, line
