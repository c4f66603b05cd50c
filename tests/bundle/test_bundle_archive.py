from __future__ import annotations

import contextlib
import io
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_bundle import FILES, accept, good_members, member, sha256_of, tar_of, toy_bundle, toy_manifest

from runtime.bundle.archive import open_bundle
from runtime.bundle.signing import verify
from runtime.bundle.ustar import header
from runtime.errors import AtlasportError, DamagedArtifactError, ExitCode, InputError


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> bytes:
    """A signed bundle's bytes."""
    return toy_bundle(tmp_path_factory.mktemp("signed") / "toy.atlas", keys[0]).read_bytes()


def refused(path: Path, *words: str, public_key: Path | None = None) -> str:
    with pytest.raises(DamagedArtifactError) as caught:
        accept(path, public_key)
    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.DAMAGED
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


# --- what is written is read ------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=1500), max_size=6), st.sampled_from(["signed", "unsigned"]))
@settings(max_examples=25)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path], data: list[bytes], kind: str):
    key = kind == "signed"
    files = FILES | {f"artifact/{index}": item for index, item in enumerate(data)}
    path = toy_bundle(tmp_path_factory.mktemp("round") / "x.atlas", keys[0] if key else None, files)
    blobs = accept(path, keys[1] if key else None)
    assert blobs == {sha256_of(item): item for item in files.values()}
    assert list(blobs) == sorted(blobs)
    # An implementation of tar that is not ours.
    with tarfile.open(path) as tar:
        assert tar.getnames()[: 1 + key] == ["atlas.json", "atlas.json.sig"][: 1 + key]
        assert {tar.extractfile(info).read() for info in tar if info.name.startswith("blobs/")} == set(files.values())
    assert path.stat().st_size % 10240 == 0


def test_tarfile_writes_the_same_bytes_but_for_its_device_numbers(tmp_path: Path):
    ours = toy_bundle(tmp_path / "toy.atlas").read_bytes()
    theirs = tar_of(good_members())
    assert len(ours) == len(theirs)
    # Where they differ is where tarfile leaves the device numbers empty, and the checksum that counts them.
    different = {at % 512 for at in range(len(ours)) if ours[at] != theirs[at]}
    assert different <= {*range(148, 156), *range(329, 345)}


def test_sizes_beyond_eight_gigabytes_are_read_by_tarfile():
    for size in (0, 8**11 - 1, 8**11, 2**40):
        info = tarfile.TarInfo.frombuf(header("blobs/" + "0" * 64, size), "ascii", "strict")
        assert (info.name, info.size, info.mode, info.isreg()) == ("blobs/" + "0" * 64, size, 0o644, True)


def test_a_blob_that_nobody_reads_is_checked_all_the_same(tmp_path: Path):
    path = toy_bundle(tmp_path / "toy.atlas")
    data = bytearray(path.read_bytes())
    data[data.index(FILES["artifact/weights.safetensors"]) + 5] ^= 1
    path.write_bytes(data)
    with open_bundle(path) as reader, pytest.raises(DamagedArtifactError, match="SHA-256"):
        for _ in reader.blobs():
            pass
    with open_bundle(path) as reader, pytest.raises(DamagedArtifactError, match="SHA-256"):
        reader.check()


# --- damage -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_memory(data: bytes) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A file in memory, and what flips one of its bits: a disk would take longer than all checks."""
    descriptor = os.memfd_create("bundle")
    current = bytearray(data)

    def flip(at: int) -> None:
        current[at // 8] ^= 1 << at % 8
        os.pwrite(descriptor, current[at // 8 : at // 8 + 1], at // 8)

    try:
        os.pwrite(descriptor, data, 0)
        yield Path(f"/proc/self/fd/{descriptor}"), flip
    finally:
        os.close(descriptor)


def is_refused(path: Path, public_key: Path) -> bool:
    """Whether hashes, or where they all fit the signature, refuse a bundle with one line and exit code 4."""
    try:
        with open_bundle(path) as reader:
            reader.check()
            if reader.signature is not None:
                verify(reader.manifest_bytes, reader.signature, public_key)
                return False
            return True  # a signed bundle was expected
    except DamagedArtifactError as error:
        return "\n" not in str(error)


def test_2000_flipped_bits_are_all_refused(signed: bytes, keys: tuple[Path, Path]):
    with in_memory(signed) as (path, flip):
        assert not is_refused(path, keys[1])
        for at in random.Random(0).sample(range(8 * len(signed)), 2000):
            flip(at)
            assert is_refused(path, keys[1]), at
            flip(at)
        assert not is_refused(path, keys[1])


def test_every_bit_of_the_first_header_counts(signed: bytes, keys: tuple[Path, Path]):
    """A size is read from it before anything is known."""
    with in_memory(signed) as (path, flip):
        for at in range(8 * 512):
            flip(at)
            assert is_refused(path, keys[1]), at
            flip(at)


def test_no_bit_of_the_signature_is_free(tmp_path: Path, signed: bytes, keys: tuple[Path, Path]):
    path = tmp_path / "toy.atlas"
    path.write_bytes(signed)
    with open_bundle(path) as reader:
        manifest, signature = reader.manifest_bytes, reader.signature
    assert signature is not None
    for at in random.Random(1).sample(range(8 * len(signature)), 300):
        damaged = bytearray(signature)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(DamagedArtifactError):
            verify(manifest, bytes(damaged), keys[1])


def test_200_truncations_are_all_refused(tmp_path: Path, signed: bytes):
    path = tmp_path / "toy.atlas"
    path.write_bytes(signed)
    lengths = {0, 1, 511, 512, 513, len(signed) - 1, len(signed) - 512, len(signed) - 10240}
    lengths |= set(random.Random(2).sample(range(len(signed)), 200))
    for length in sorted(lengths, reverse=True):
        os.truncate(path, length)
        refused(path)


@pytest.mark.parametrize("tail", [b"\0", bytes(512), bytes(10240), b"x", tar_of([member("evil", b"x")])])
def test_trailing_bytes_are_refused(tmp_path: Path, signed: bytes, tail: bytes):
    path = tmp_path / "toy.atlas"
    path.write_bytes(signed + tail)
    refused(path, "expected", "bytes, found")


def test_the_padding_is_not_free(tmp_path: Path, signed: bytes):
    path = tmp_path / "toy.atlas"
    for at in (len(signed) - 1, len(signed) - 1024, len(signed) - 5000):
        damaged = bytearray(signed)
        damaged[at] = 1
        path.write_bytes(damaged)
        refused(path, "end")


# --- hostile archives -------------------------------------------------------------------------------------------------


def hostile(name: str) -> bytes:
    good = good_members()
    first, blobs = good[0], good[1:]
    link = {"linkname": "/etc/passwd"}
    sha256 = blobs[0][0].name.removeprefix("blobs/")
    lying = toy_manifest().to_bytes().replace(b'"size": 500', b'"size": 400')
    huge = toy_manifest().to_bytes().replace(b'"size": 500', b'"size": 500000000000')
    cases = {
        "two dots": [first, member("../../etc/cron.d/x", b"x"), *blobs],
        "two dots first": [member("../atlas.json", first[1]), *blobs],
        "absolute": [first, member("/etc/cron.d/x", b"x"), *blobs],
        "symlink": [first, member(f"blobs/{sha256}", type=tarfile.SYMTYPE, **link), *blobs[1:]],
        "hardlink": [first, member(f"blobs/{sha256}", type=tarfile.LNKTYPE, **link), *blobs[1:]],
        "character device": [first, member(f"blobs/{sha256}", type=tarfile.CHRTYPE, devmajor=1), *blobs[1:]],
        "block device": [first, member(f"blobs/{sha256}", type=tarfile.BLKTYPE, devmajor=8), *blobs[1:]],
        "fifo": [first, member(f"blobs/{sha256}", type=tarfile.FIFOTYPE), *blobs[1:]],
        "folder": [first, member("blobs", type=tarfile.DIRTYPE, mode=0o755), *blobs],
        "symlinked manifest": [member("atlas.json", type=tarfile.SYMTYPE, **link), *blobs],
        "duplicate blob": [first, blobs[0], *blobs],
        "duplicate manifest": [first, first, *blobs],
        "case collision": [first, member(f"BLOBS/{sha256}", blobs[0][1]), *blobs],
        "wrong order": [first, *blobs[::-1]],
        "manifest last": [*blobs, first],
        "missing blob": [first, *blobs[:-1]],
        "missing manifest": blobs,
        "extra blob": [first, *blobs, member("blobs/" + "f" * 64, b"x")],
        "setuid": [first, member(f"blobs/{sha256}", blobs[0][1], mode=0o4755), *blobs[1:]],
        "owner": [first, member(f"blobs/{sha256}", blobs[0][1], uid=1000, uname="me"), *blobs[1:]],
        "time": [first, member(f"blobs/{sha256}", blobs[0][1], mtime=1), *blobs[1:]],
        "empty": [],
        "manifest lies: less": [member("atlas.json", lying), *blobs],
        "manifest lies: more": [member("atlas.json", huge), *blobs],
        "deep JSON": [member("atlas.json", b"[" * 10_000 + b"]" * 10_000), *blobs],
        "other content": [first, *((info, bytes(len(data))) for info, data in blobs)],
    }
    return tar_of(cases[name])


NAMES = [
    "two dots", "two dots first", "absolute", "symlink", "hardlink", "character device", "block device", "fifo",
    "folder", "symlinked manifest", "duplicate blob", "duplicate manifest", "case collision", "wrong order",
    "manifest last", "missing blob", "missing manifest", "extra blob", "setuid", "owner", "time", "empty",
    "manifest lies: less", "manifest lies: more", "deep JSON", "other content",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_hostile_archives_are_refused(tmp_path: Path, name: str):
    path = tmp_path / "hostile.atlas"
    path.write_bytes(hostile(name))
    refused(path, str(path))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "word"), [("atlas.json", "at most 4194304"), ("atlas.json.sig", "at most 1048576")])
@pytest.mark.parametrize("size", [2**25, 8**11 - 1])
def test_bombs_are_refused_before_they_are_read(tmp_path: Path, name: str, word: str, size: int):
    path = tmp_path / "bomb.atlas"
    manifest = toy_manifest().to_bytes()
    before = (
        b""
        if name == "atlas.json"
        else header("atlas.json", len(manifest)) + manifest.ljust(-(-len(manifest) // 512) * 512, b"\0")
    )
    with path.open("wb") as file:
        file.write(before + header(name, size))
        file.truncate(2**34)  # sparse: nothing of it is on the disk
    read = psutil.Process().io_counters().read_chars
    refused(path, word)
    assert psutil.Process().io_counters().read_chars - read < 2**22


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_other_kinds_of_tar_are_refused(tmp_path: Path, kind: int):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind, pax_headers={"comment": "x"}) as tar:
        for info, data in good_members():
            tar.addfile(info, io.BytesIO(data))
    path = tmp_path / "other.atlas"
    path.write_bytes(buffer.getvalue())
    refused(path)


@given(st.binary(max_size=2000))
@settings(max_examples=50)
def test_no_bytes_make_it_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.mktemp("fuzz") / "x.atlas"
    for head in (b"", header("atlas.json", len(data))):
        path.write_bytes(head + data)
        with pytest.raises(DamagedArtifactError):
            open_bundle(path)


@given(st.data())
@settings(max_examples=100)
def test_no_change_of_a_good_bundle_makes_it_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, signed: bytes, keys: tuple[Path, Path], data: st.DataObject
):
    start = data.draw(st.integers(0, len(signed)))
    end = data.draw(st.integers(start, min(len(signed), start + 2000)))
    changed = signed[:start] + data.draw(st.binary(max_size=2000)) + signed[end:]
    path = tmp_path_factory.mktemp("fuzz") / "x.atlas"
    path.write_bytes(changed)
    with contextlib.nullcontext() if changed == signed else pytest.raises(DamagedArtifactError):
        accept(path, keys[1])


def test_what_is_no_file_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (
        (tmp_path / "none.atlas", InputError),
        (tmp_path, InputError),
        (tmp_path / "pipe", InputError),
        (Path("/dev/zero"), InputError),
    ):
        with pytest.raises(kind) as caught:
            open_bundle(path)
        assert str(path) in str(caught.value)
        assert isinstance(caught.value, AtlasportError)
