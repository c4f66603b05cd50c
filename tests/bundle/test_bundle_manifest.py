from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from toy_bundle import FILES, entry, sha256_of, toy_manifest

from runtime.bundle.manifest import Base, BundleManifest, Patch, Piece, Requirements
from runtime.errors import DamagedArtifactError

NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"], exclude_characters="/\\"), min_size=1)
PATHS = st.lists(NAMES.filter(lambda name: name not in {".", ".."}), min_size=1, max_size=3).map("/".join)


@given(
    paths=st.dictionaries(PATHS, st.binary(max_size=5), max_size=4),
    attribution=st.text(max_size=20),
    numbers=st.tuples(*[st.integers(0, 10**9 - 1)] * 3),
    cann=st.none() | st.just(">=8.5"),
    memory=st.integers(0, 2**60),
)
@settings(max_examples=60)
def test_what_is_written_is_read(
    paths: dict[str, bytes], attribution: str, numbers: tuple[int, int, int], cann: str | None, memory: int
) -> None:
    needs = Requirements(python="", packages={}, torch_npu=None, cann=cann, socs=("A",), memory_bytes=memory)
    files = FILES | {f"artifact/{path}": data for path, data in paths.items()}
    try:
        manifest = toy_manifest(
            files,
            version=".".join(map(str, numbers)),
            requirements=needs,
            licence={"identifier": "mit", "attribution": attribution},
        )
    except ValidationError as error:  # paths that one file system or another takes for the same
        assert "differ in case only" in str(error) or "file and a folder" in str(error)  # noqa: PT017
        return
    data = manifest.to_bytes()
    assert BundleManifest.from_bytes(data, "x.atlas") == manifest
    assert json.loads(data)["version"] == ".".join(map(str, numbers))


def refused(data: bytes, *words: str) -> None:
    with pytest.raises(DamagedArtifactError) as caught:
        BundleManifest.from_bytes(data, "x.atlas")
    message = str(caught.value)
    assert message.startswith("x.atlas: ")
    assert "\n" not in message
    assert len(message) < 500
    for word in words:
        assert word in message


def changed(**changes: Any) -> bytes:
    raw = json.loads(toy_manifest().to_bytes())
    return (json.dumps(raw | changes, sort_keys=True, indent=2) + "\n").encode()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "JSON"),
        (b"[" * 10_000 + b"]" * 10_000, "JSON"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "JSON"),
        (b"[]", "format 1"),
        (b"null", "format 1"),
        (b"\xff\xfe", "JSON"),
        (changed(format_version=2), "format 1, found 2"),
        (changed(unknown=1), "unknown"),
        (changed(version="1.0"), "version"),
        (changed(version="1.00.0"), "version"),
        (changed(version="1.0.0\n"), "version"),
        (changed(model="../toy"), "model"),
        (changed(profile="gpu"), "profile"),
        (changed(waivers=["unverified", "random-weights"]), "waivers"),
        (changed(waivers=["unverified", "unverified"]), "waivers"),
        (toy_manifest().to_bytes() + b"\n", "form that freeze writes"),
        (toy_manifest().to_bytes().replace(b'"toy"', b'"t\\u006fy"'), "form that freeze writes"),
        (toy_manifest().to_bytes().replace(b'"nobody"', b'"\\ud800"'), "atlas.json"),
        (toy_manifest().to_bytes().replace(b'"memory_bytes": 0', b'"memory_bytes": NaN'), "memory_bytes"),
        (toy_manifest().to_bytes().replace(b'"memory_bytes": 0', b'"memory_bytes": ' + b"9" * 5000), "atlas.json"),
        (toy_manifest().to_bytes().replace(b'"memory_bytes": 0', b'"memory_bytes": ' + b"9" * 400), "memory_bytes"),
        (
            toy_manifest().to_bytes().replace(b'"model": "toy"', b'"model": "toy",\n  "model": "toy"'),
            "form that freeze writes",
        ),
    ],
)
def test_what_freeze_does_not_write_is_refused(data: bytes, word: str) -> None:
    refused(data, word)


@pytest.mark.parametrize(
    ("paths", "word"),
    [
        (["artifact/../../etc/passwd"], "not a plain path"),
        (["/etc/passwd"], "not a plain path"),
        (["artifact/./x"], "not a plain path"),
        (["artifact//x"], "not a plain path"),
        (["artifact\\x"], "not a plain path"),
        (["artifact/x\ny"], "not a plain path"),
        (["atlas.json"], "no part of a bundle"),
        (["atlas.json.sig"], "no part of a bundle"),
        ([".bashrc"], "no part of a bundle"),
        (["artifact"], "no part of a bundle"),
        (["README.md/x"], "no part of a bundle"),
        (["artifact/A", "artifact/a"], "case only"),
        (["artifact/stra\u00dfe", "artifact/strasse"], "case only"),
        (["artifact/e\u0301", "artifact/\u00e9"], "case only"),
        (["artifact/D/x", "artifact/d/y"], "case only"),
        (["artifact/d", "artifact/d/x"], "file and a folder"),
        (["artifact/" + "x" * 256], "too long"),
        (["artifact/" + "x/" * 600 + "x"], "too long"),
        ([f"artifact/{index}" for index in range(2001)], "at most 2000"),
    ],
)
def test_hostile_paths_are_refused(paths: list[str], word: str) -> None:
    raw = json.loads(toy_manifest().to_bytes())
    raw["files"] |= {path: {"sha256": sha256_of(b""), "size": 0} for path in paths}
    refused((json.dumps(raw, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode(), word)


@pytest.mark.parametrize("path", ["artifact/manifest.json", "LICENSE.txt", "README.md", "bom.cdx.json"])
def test_every_bundle_has_these_files(path: str) -> None:
    raw = json.loads(toy_manifest().to_bytes())
    del raw["files"][path]
    refused((json.dumps(raw, sort_keys=True, indent=2) + "\n").encode(), path)


def test_two_sizes_of_one_blob_are_refused() -> None:
    raw = json.loads(toy_manifest().to_bytes())
    raw["files"]["artifact/copy.safetensors"]["size"] += 1
    refused((json.dumps(raw, sort_keys=True, indent=2) + "\n").encode(), "another size")


OLD, NEW = sha256_of(b"old"), sha256_of(FILES["artifact/weights.safetensors"])


def base(**changes: Any) -> Base:
    pieces = (Piece(source=None, offset=0, size=1000), Piece(source=OLD, offset=7, size=2000))
    patch = Patch(sha256=sha256_of(b"own"), size=1000, pieces=pieces).model_copy(update=changes.pop("patch", {}))
    parts = {"version": "0.9.0", "manifest_sha256": "0" * 64, "blobs": (OLD,), "patches": {NEW: patch}} | changes
    return Base(**parts)


def test_a_patched_blob_is_a_member_by_its_own_bytes() -> None:
    manifest = toy_manifest(base=base())
    assert manifest.blobs[NEW] == 3000
    assert manifest.members[sha256_of(b"own")] == 1000
    assert NEW not in manifest.members
    assert BundleManifest.from_bytes(manifest.to_bytes(), "x") == manifest


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"blobs": (OLD, OLD)}, "not sorted"),
        ({"blobs": ()}, "against the rules"),
        ({"blobs": tuple(sorted((OLD, "1" * 64)))}, "belongs to no file"),
        ({"blobs": tuple(sorted((OLD, NEW)))}, "against the rules"),
        ({"patches": {"1" * 64: base().patches[NEW]}}, "against the rules"),
        ({"patch": {"size": 999}}, "another number of bytes"),
        ({"patch": {"sha256": NEW}}, "the same name"),
        ({"patch": {"pieces": (Piece(source=None, offset=1, size=1000),)}, "blobs": ()}, "one after the other"),
        ({"patch": {"pieces": (Piece(source=None, offset=0, size=1000),)}, "blobs": ()}, "another number of bytes"),
    ],
)
def test_an_impossible_delta_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        toy_manifest(base=base(**changes))


@pytest.mark.parametrize("number", [2**63, 10**30, 10**400, -1])
@pytest.mark.parametrize("key", ["offset", "size"])
def test_offsets_that_no_file_has_are_refused(number: int, key: str) -> None:
    raw = json.loads(toy_manifest(base=base()).to_bytes())
    raw["base"]["patches"][NEW]["pieces"][1][key] = number
    refused((json.dumps(raw, sort_keys=True, indent=2) + "\n").encode(), key)


def test_a_file_that_no_disk_has_is_refused() -> None:
    raw = json.loads(toy_manifest().to_bytes())
    raw["files"]["artifact/weights.safetensors"] = {"sha256": "9" * 64, "size": 2**63}
    refused((json.dumps(raw, sort_keys=True, indent=2) + "\n").encode(), "no file is that large")


def test_an_entry_is_size_and_hash() -> None:
    assert entry(b"abc").sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
