"""Carries bundles through an OCI registry, as ModelPack artifacts (CNCF model-spec): a layer a blob.

What two versions share is stored and sent once. A bundle's every byte follows from its manifest, signature and blobs,
so what is pulled is the file that was pushed, and its signature still fits. The registry is not trusted: all that
comes from it is bounded and held to the digests of `atlas.json`, which the installer checks against the key.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlencode

from runtime.bounded_json import load_json
from runtime.bundle.archive import (
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    BundleReader,
    open_bundle,
    write_bundle,
)
from runtime.bundle.manifest import BUNDLE_MANIFEST_NAME, SIGNATURE_NAME, BundleManifest
from runtime.bundle.registry_http import RegistryHttp
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, InputError

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
FILE_PATH = "org.cncf.model.filepath"
# Kinds of layers by a file's suffix; the rest configures the model.
_LAYER_TYPE = "application/vnd.cncf.model.{}.v1.raw"
_KINDS = {
    "weight": (".onnx", ".pt2", ".safetensors", ".ts"),
    "doc": (".md", ".txt", ".html", ".log"),
    "code": (".sh",),
    "dataset": (".flac", ".mp3", ".ogg", ".opus", ".wav"),
}
_PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_MAX_OCI_MANIFEST_BYTES = 4 * 2**20  # what registries take
_MAX_OCI_VALUES = 100_000
_CHUNK = 16 * 2**20
_NOT_FOUND = 404
_FOUND_OR_NOT = (200, _NOT_FOUND)
_REFERENCE = re.compile(
    r"(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\])(?P<port>:[0-9]{1,5})?"
    r"/(?P<repository>[a-z0-9]+(?:[._/-][a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Reference:
    """Where a bundle is: `registry.example.com:5000/speech/whisper-tiny:1.0.0`, or with its digest behind `@`."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None
    loopback: bool

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return the reference that `text` is.

        Raises
        ------
        InputError
            It names no registry, or neither tag nor digest.

        """
        match = _REFERENCE.fullmatch(text)
        if not match or not (match["tag"] or match["digest"]):
            raise InputError(f"{text}: expected REGISTRY[:PORT]/REPOSITORY:TAG or ...@sha256:DIGEST; name all of them")
        host = match["host"]
        try:
            loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
        except ValueError:
            loopback = host == "localhost"
        return cls(host + (match["port"] or ""), match["repository"], match["tag"], match["digest"], loopback)

    def __str__(self) -> str:
        """Return the text that it was parsed from."""
        tag, digest = (f":{self.tag}" if self.tag else ""), (f"@{self.digest}" if self.digest else "")
        return f"{self.registry}/{self.repository}{tag}{digest}"


@dataclass(frozen=True)
class Pushed:
    """The artifact's digest, and how many bytes of layers were sent and how many were there already."""

    digest: str
    sent: int
    present: int


def push(bundle: Path, reference: Reference, *, insecure: bool = False) -> Pushed:
    """Send a bundle to a registry; layers that are there are not sent again.

    Plain http is spoken with this machine alone, unless `insecure`. Logins are those of `docker login`.

    Raises
    ------
    InputError
        There is no such bundle, or the reference has a digest, which is not known before.
    DamagedArtifactError
        The bundle is damaged.
    EnvironmentNotFitError
        The registry is not there or refuses.

    """
    if reference.digest or not reference.tag:
        raise InputError(f"{reference}: expected a tag to push to; leave the digest out")
    client = _Client(reference, insecure=insecure)
    sent = present = 0
    layers: list[dict[str, Any]] = []
    with open_bundle(bundle) as reader:
        for name, sha256, size, chunks in _layers(reader):
            if client.has_blob(sha256):
                present += size
            else:
                client.upload(sha256, chunks)
                sent += size
            layers.append(_layer(name, sha256, size))
        config = _config(reader.manifest, layers)
        client.upload(hashlib.sha256(config).hexdigest(), [config])
        manifest = _oci_manifest(reader.manifest, config, layers)
        return Pushed(client.put_manifest(manifest), sent, present)


def pull(reference: Reference, out: Path | None = None, *, insecure: bool = False) -> Path:
    """Get a bundle from a registry and return its path; the installer checks its signature.

    Parameters
    ----------
    reference : Reference
        Where it is.
    out : Path, optional
        The file; default: `<model>-<variant>-<profile>-<version>.atlas` in the working directory. An old file is
        replaced at the end, or not at all.
    insecure : bool
        Speak plain http with another machine.

    Raises
    ------
    InputError
        There is no such artifact, or it is not a bundle.
    DamagedArtifactError
        What came is not what its digests say.
    EnvironmentNotFitError
        The registry is not there or refuses, or the disk is full.

    """
    client = _Client(reference, insecure=insecure)
    small = _small_layers(client.manifest(), reference)
    data = client.small_blob(*small[BUNDLE_MANIFEST_NAME], MAX_MANIFEST_BYTES)
    manifest = BundleManifest.from_bytes(data, str(reference))
    signature = None
    if SIGNATURE_NAME in small:
        signature = client.small_blob(*small[SIGNATURE_NAME], MAX_SIGNATURE_BYTES)
    name = f"{manifest.model}-{manifest.variant}-{manifest.profile}-{manifest.version}.atlas"
    target = out or Path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(manifest.members.values()), shutil.disk_usage(target.parent).free
    if 2 * needed > free:  # layers, then the archive
        raise EnvironmentNotFitError(
            f"{target}: expected {2 * needed / 1e9:.1f} GB of free disk, found {free / 1e9:.1f} GB; free some"
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        blobs = {sha256: Path(temporary) / sha256 for sha256 in manifest.members}
        for sha256, size in manifest.members.items():
            with blobs[sha256].open("wb") as file:
                for chunk in client.blob(sha256, size):
                    file.write(chunk)
        write_bundle(target, manifest, signature, dict(blobs))
    return target


def _layers(reader: BundleReader) -> Iterator[tuple[str, str, int, Iterable[bytes]]]:
    """Yield the path, SHA-256, size and chunks of each layer."""
    for name, data in ((BUNDLE_MANIFEST_NAME, reader.manifest_bytes), (SIGNATURE_NAME, reader.signature)):
        if data is not None:
            yield name, hashlib.sha256(data).hexdigest(), len(data), [data]
    paths = {entry.sha256: path for path, entry in sorted(reader.manifest.files.items(), reverse=True)}
    for sha256, chunks in reader.members():
        # A delta's patch is no file of the model's.
        yield paths.get(sha256, f"blobs/{sha256}"), sha256, reader.manifest.members[sha256], chunks


def _layer(name: str, sha256: str, size: int) -> dict[str, Any]:
    suffix = PurePosixPath(name).suffix
    kind = next((kind for kind, suffixes in _KINDS.items() if suffix in suffixes), "weight.config")
    described = {"mediaType": _LAYER_TYPE.format(kind), "digest": f"sha256:{sha256}", "size": size}
    return {**described, "annotations": {FILE_PATH: name}}


def _config(manifest: BundleManifest, layers: list[dict[str, Any]]) -> bytes:
    """Return the model's configuration: no time in it, so that pushing again changes nothing."""
    return _json(
        {
            "descriptor": {
                "family": manifest.family,
                "name": manifest.model,
                "version": manifest.version,
                "licenses": [manifest.licence.identifier],
            },
            "config": {
                "format": "pt" if manifest.profile == "npu" else "onnx",
                "precision": _PRECISIONS[manifest.variant],
                "capabilities": {"inputTypes": ["audio"]},
            },
            "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
        }
    )


def _oci_manifest(manifest: BundleManifest, config: bytes, layers: list[dict[str, Any]]) -> bytes:
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": digest, "size": len(config)},
            "layers": layers,
            "annotations": {"org.opencontainers.image.version": manifest.version},
        }
    )


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _small_layers(data: bytes, reference: Reference) -> dict[str, tuple[str, int]]:
    """Return SHA-256 and size of the layers that are no blobs, by name."""
    try:
        parsed = load_json(data, _MAX_OCI_VALUES)
        if parsed["artifactType"] != ARTIFACT_TYPE:
            raise KeyError
        named = {layer.get("annotations", {}).get(FILE_PATH): layer for layer in parsed["layers"]}
        found = {
            name: _digest_and_size(named[name]) for name in (BUNDLE_MANIFEST_NAME, SIGNATURE_NAME) if name in named
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{reference}: expected a ModelPack artifact, found something else") from error
    if BUNDLE_MANIFEST_NAME not in found:
        raise InputError(f"{reference}: expected a bundle, found a model without {BUNDLE_MANIFEST_NAME}")
    return found


def _digest_and_size(layer: dict[str, Any]) -> tuple[str, int]:
    digest = re.fullmatch("sha256:([0-9a-f]{64})", layer["digest"])
    if digest is None or type(layer["size"]) is not int:  # JSON has fractions, infinities, and true
        raise ValueError("no layer")
    return digest[1], layer["size"]


class _Client:
    """One repository of a registry."""

    def __init__(self, reference: Reference, *, insecure: bool) -> None:
        self._reference = reference
        self._http = RegistryHttp(reference.registry, plain=insecure or reference.loopback, where=str(reference))
        self._base = self._http.root + reference.repository

    def has_blob(self, sha256: str) -> bool:
        return bool(self._ask("HEAD", f"{self._base}/blobs/sha256:{sha256}", _FOUND_OR_NOT).ok)

    def upload(self, sha256: str, chunks: Iterable[bytes]) -> None:
        """Send a blob in pieces that fit the memory; the registry compares its digest at the end."""
        url, sent = f"{self._base}/blobs/uploads/", 0
        url = self._http.location(url, self._ask("POST", url, (202,)))
        for piece in _rechunked(chunks):
            headers = {"Content-Range": f"{sent}-{sent + len(piece) - 1}", "Content-Type": "application/octet-stream"}
            url = self._http.location(url, self._ask("PATCH", url, (202,), data=piece, headers=headers))
            sent += len(piece)
        query = urlencode({"digest": f"sha256:{sha256}"})
        self._ask("PUT", f"{url}{'&' if '?' in url else '?'}{query}", (201,), headers={"Content-Length": "0"})

    def put_manifest(self, data: bytes) -> str:
        """Store the manifest under the tag; return its digest."""
        url = f"{self._base}/manifests/{self._reference.tag}"
        self._ask("PUT", url, (201,), data=data, headers={"Content-Type": MANIFEST_TYPE})
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    def manifest(self) -> bytes:
        """Return the manifest, of the reference's digest where it has one."""
        reference = self._reference
        url = f"{self._base}/manifests/{reference.digest or reference.tag}"
        response = self._ask("GET", url, (200,), headers={"Accept": MANIFEST_TYPE})
        data = b"".join(self._http.body(response, _MAX_OCI_MANIFEST_BYTES))
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if found != (reference.digest or response.headers.get("Docker-Content-Digest", found)):
            raise DamagedArtifactError(f"{reference}: found a manifest of digest {found}; get it from another registry")
        return data

    def small_blob(self, sha256: str, size: int, limit: int) -> bytes:
        if not 0 <= size <= limit:
            raise DamagedArtifactError(f"{self._reference}: expected at most {limit} bytes in a layer, found {size}")
        return b"".join(self.blob(sha256, size))

    def blob(self, sha256: str, size: int) -> Iterator[bytes]:
        """Yield a blob of `size` bytes; after the last chunk its hash is known to fit."""
        response = self._ask("GET", f"{self._base}/blobs/sha256:{sha256}", (200,))
        digest, left = hashlib.sha256(), size
        for chunk in self._http.body(response, size):
            digest.update(chunk)
            left -= len(chunk)
            yield chunk
        if left or digest.hexdigest() != sha256:
            raise DamagedArtifactError(
                f"{self._reference}: layer {sha256[:12]}: found other bytes ({left} are missing); pull it again"
            )

    def _ask(
        self,
        method: str,
        url: str,
        expected: tuple[int, ...],
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Return the answer; the body of one that was only asked for its status is never read."""
        response = self._http.ask(method, url, data=data, headers=headers)
        status = response.status_code
        if method != "GET" or status not in expected:
            response.close()
        if status in expected:
            return response
        if status == _NOT_FOUND:
            raise InputError(f"{self._reference}: the registry has no such artifact; check repository and tag")
        advice = "log in (docker login)" if status in {401, 403} else "ask its operator"
        reason = str(response.reason)[:100]
        raise EnvironmentNotFitError(f"{self._reference}: the registry answers {status} {reason}; {advice}")


def _rechunked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in larger pieces: each is a request."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        if len(held) >= _CHUNK:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)
