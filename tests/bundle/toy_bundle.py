"""Small bundles, made by the format's own functions or, to be hostile, by tarfile."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.bundle.archive import open_bundle, write_bundle
from runtime.bundle.manifest import BundleManifest, Licence, Requirements, SelfTest
from runtime.bundle.signing import sign, verify
from runtime.manifest import FileEntry

FILES = {
    "LICENSE.txt": b"licence",
    "README.md": b"card\n" * 100,
    "artifact/manifest.json": b"{}",
    "artifact/weights.safetensors": random.Random(0).randbytes(3000),
    "artifact/copy.safetensors": random.Random(0).randbytes(3000),
    "bom.cdx.json": b"",
}


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry(data: bytes) -> FileEntry:
    return FileEntry(size=len(data), sha256=sha256_of(data))


def toy_manifest(files: Mapping[str, bytes] | None = None, **changes: Any) -> BundleManifest:
    parts: dict[str, Any] = {
        "format_version": 1,
        "model": "toy",
        "family": "whisper",
        "variant": "fp32",
        "profile": "cpu",
        "version": "1.0.0",
        "content_sha256": "0" * 64,
        "files": {path: entry(data) for path, data in (files or FILES).items()},
        "requirements": Requirements(python=">=3.10", packages={}, torch_npu=None, cann=None, socs=(), memory_bytes=0),
        "licence": Licence(identifier="mit", attribution="nobody"),
        "verification": None,
        "waivers": ("unverified",),
        "self_test": SelfTest(cases=(), recording=None),
        "base": None,
    }
    return BundleManifest(**(parts | changes))


def toy_bundle(path: Path, key: Path | None = None, files: Mapping[str, bytes] | None = None, **changes: Any) -> Path:
    manifest = toy_manifest(files, **changes)
    signature = sign(manifest.to_bytes(), key) if key else None
    write_bundle(path, manifest, signature, {sha256_of(data): data for data in (files or FILES).values()})
    return path


def member(name: str, data: bytes = b"", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A tar member as freeze makes it, but for the changes of its header."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o644, 0
    for attribute, value in changes.items():
        setattr(info, attribute, value)
    return info, data


def tar_of(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def good_members(manifest: bytes | None = None) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members of the unsigned toy bundle."""
    blobs = {sha256_of(data): data for data in FILES.values()}
    first = member("atlas.json", manifest or toy_manifest().to_bytes())
    return [first, *(member(f"blobs/{name}", data) for name, data in sorted(blobs.items()))]


def accept(path: Path, public_key: Path | None = None) -> dict[str, bytes]:
    """Check everything as a box does, and return the blobs."""
    with open_bundle(path) as reader:
        if public_key:
            assert reader.signature is not None
            verify(reader.manifest_bytes, reader.signature, public_key)
        return {sha256: b"".join(chunks) for sha256, chunks in reader.blobs()}
