"""Push and pull through Debian's docker-registry on loopback, with its storage damaged, and through hostile registries.

The hostile ones are HTTP servers of this file: they answer whatever a test says.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from toy_bundle import FILES, sha256_of, toy_bundle

from runtime.bundle.registry import ARTIFACT_TYPE, CONFIG_TYPE, Pushed, Reference, pull, push
from runtime.bundle.signing import generate_key, verify
from runtime.errors import AtlasportError, DamagedArtifactError, EnvironmentNotFitError, InputError

REPOSITORY = Path(__file__).resolve().parents[2]
needs_registry = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="docker-registry is not installed (apt-get install docker-registry)"
)
# The password is "secret".
HTPASSWD = "nobody:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logins of the person who runs the tests are not those of the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)


class Registry:
    """A docker-registry on loopback."""

    def __init__(self, folder: Path, *, htpasswd: str | None = None) -> None:
        self.storage = folder / "storage"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        lines = ["version: 0.1", f"http: {{addr: '{self.address}'}}", "storage:"]
        lines += [f"  filesystem: {{rootdirectory: '{self.storage}'}}"]
        if htpasswd:
            (folder / "htpasswd").write_text(htpasswd)
            lines += [f"auth: {{htpasswd: {{realm: test, path: '{folder / 'htpasswd'}'}}}}"]
        (folder / "config.yml").write_text("\n".join(lines))
        command = ["docker-registry", "serve", str(folder / "config.yml")]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        host, port = self.address.split(":")
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex((host, int(port))) == 0:
                    return
            time.sleep(0.05)
        pytest.fail("docker-registry does not start")

    def blob(self, sha256: str) -> Path:
        return self.storage / "docker" / "registry" / "v2" / "blobs" / "sha256" / sha256[:2] / sha256 / "data"

    def reference(self, name: str) -> Reference:
        return Reference.parse(f"{self.address}/{name}")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    server = Registry(tmp_path)
    try:
        server.wait()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


# --- a real registry --------------------------------------------------------------------------------------------------
@needs_registry
def test_what_is_pulled_is_what_was_pushed(registry: Registry, tmp_path: Path) -> None:
    private, public = generate_key(tmp_path / "keys")
    bundle = toy_bundle(tmp_path / "toy.atlas", private)
    pushed = push(bundle, registry.reference("speech/toy:1.0.0"))
    for reference in ("speech/toy:1.0.0", f"speech/toy@{pushed.digest}", f"speech/toy:1.0.0@{pushed.digest}"):
        out = pull(registry.reference(reference), tmp_path / "pulled" / "toy.atlas")
        assert out.read_bytes() == bundle.read_bytes()
        assert [path.name for path in out.parent.iterdir()] == ["toy.atlas"]
    from runtime.bundle.archive import open_bundle

    with open_bundle(out) as reader:
        assert reader.signature is not None
        verify(reader.manifest_bytes, reader.signature, public)


@needs_registry
def test_the_artifact_is_a_modelpack(registry: Registry, tmp_path: Path) -> None:
    """The registry's own answers, read without our code: the types and fields that CNCF's model-spec demands."""
    pushed = push(toy_bundle(tmp_path / "toy.atlas"), registry.reference("toy:1"))
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    with urlopen(Request(f"http://{registry.address}/v2/toy/manifests/1", headers=accept)) as response:
        data = response.read()
        assert response.headers["Docker-Content-Digest"] == pushed.digest
    manifest = json.loads(data)
    assert manifest["artifactType"] == ARTIFACT_TYPE == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == CONFIG_TYPE == "application/vnd.cncf.model.config.v1+json"
    types = {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]}
    assert types == {
        "atlas.json": "application/vnd.cncf.model.weight.config.v1.raw",
        "LICENSE.txt": "application/vnd.cncf.model.doc.v1.raw",
        "README.md": "application/vnd.cncf.model.doc.v1.raw",
        "artifact/manifest.json": "application/vnd.cncf.model.weight.config.v1.raw",
        "artifact/copy.safetensors": "application/vnd.cncf.model.weight.v1.raw",  # and weights.safetensors
        "bom.cdx.json": "application/vnd.cncf.model.weight.config.v1.raw",
    }
    with urlopen(f"http://{registry.address}/v2/toy/blobs/{manifest['config']['digest']}") as response:
        config = json.load(response)
    assert set(config) == {"descriptor", "config", "modelfs"}
    assert config["descriptor"] == {"family": "whisper", "name": "toy", "version": "1.0.0", "licenses": ["mit"]}
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}


@needs_registry
def test_shared_layers_are_sent_once(registry: Registry, tmp_path: Path) -> None:
    first = push(toy_bundle(tmp_path / "a.atlas"), registry.reference("toy:1.0.0"))
    again = push(tmp_path / "a.atlas", registry.reference("toy:1.0.0"))
    assert (first.present, again.sent, again.digest) == (0, 0, first.digest)
    changed = toy_bundle(tmp_path / "b.atlas", files={**FILES, "README.md": b"new card"}, version="1.0.1")
    second = push(changed, registry.reference("toy:1.0.1"))
    # The weights, the licence and the artifact's manifest were there; the empty file has no bytes.
    assert second.present == 3000 + len(b"licence") + len(b"{}")
    assert second.digest != first.digest
    assert pull(registry.reference("toy:1.0.0"), tmp_path / "c").read_bytes() == (tmp_path / "a.atlas").read_bytes()


@needs_registry
def test_a_layer_of_several_pieces(registry: Registry, tmp_path: Path) -> None:
    weights = random.Random(1).randbytes(40_000_000)
    bundle = toy_bundle(tmp_path / "a.atlas", files={**FILES, "artifact/weights.safetensors": weights})
    assert push(bundle, registry.reference("toy:1")).sent > len(weights)
    assert registry.blob(sha256_of(weights)).read_bytes() == weights
    assert pull(registry.reference("toy:1"), tmp_path / "b").read_bytes() == bundle.read_bytes()


@needs_registry
@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "longer"])
@pytest.mark.parametrize("name", ["artifact/weights.safetensors", "atlas.json"])
def test_a_damaged_storage_is_refused(registry: Registry, tmp_path: Path, damage: str, name: str) -> None:
    bundle = toy_bundle(tmp_path / "toy.atlas")
    push(bundle, registry.reference("toy:1"))
    from runtime.bundle.archive import open_bundle

    with open_bundle(bundle) as reader:
        data = reader.manifest_bytes if name == "atlas.json" else FILES[name]
    stored = registry.blob(sha256_of(data))
    found = bytearray(stored.read_bytes())
    assert found == data
    if damage == "flipped bit":
        found[len(found) // 2] ^= 1
    stored.write_bytes({"flipped bit": found, "truncated": found[:-1], "longer": found + b"x"}[damage])
    # The registry may refuse first to serve it.
    with pytest.raises((DamagedArtifactError, EnvironmentNotFitError)) as failure:
        pull(registry.reference("toy:1"), tmp_path / "out" / "pulled.atlas")
    assert damage != "flipped bit" or isinstance(failure.value, DamagedArtifactError)
    assert list((tmp_path / "out").iterdir() if (tmp_path / "out").exists() else []) == []


@needs_registry
def test_a_login_is_wanted_and_found(tmp_path: Path) -> None:
    server = Registry(tmp_path, htpasswd=HTPASSWD)
    try:
        server.wait()
        bundle = toy_bundle(tmp_path / "toy.atlas")
        with pytest.raises(EnvironmentNotFitError, match="docker login"):
            push(bundle, server.reference("toy:1"))
        (tmp_path / ".docker").mkdir()
        login = base64.b64encode(b"nobody:secret").decode()
        config = {"auths": {server.address: {"auth": login}}}
        (tmp_path / ".docker" / "config.json").write_text(json.dumps(config))
        assert isinstance(push(bundle, server.reference("toy:1")), Pushed)
        assert pull(server.reference("toy:1"), tmp_path / "out").read_bytes() == bundle.read_bytes()
    finally:
        server.process.kill()
        server.process.wait()


@needs_registry
def test_the_commands(registry: Registry, tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "toy.atlas")

    def atlasport(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "atlasport", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    pushed = atlasport("push", str(bundle), f"{registry.address}/speech/toy:1.0.0")
    assert pushed.returncode == 0, pushed.stderr
    pulled = atlasport("pull", pushed.stdout.strip())
    assert (pulled.returncode, pulled.stdout) == (0, "toy-fp32-cpu-1.0.0.atlas\n"), pulled.stderr
    assert (tmp_path / "toy-fp32-cpu-1.0.0.atlas").read_bytes() == bundle.read_bytes()
    missing = atlasport("pull", f"{registry.address}/speech/other:1.0.0")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (2, 1), missing.stderr


# --- references -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "registry", "repository", "loopback"),
    [
        ("registry.example.com/toy:1", "registry.example.com", "toy", False),
        ("registry.example.com:5000/a/b-c/d_e:1.0.0", "registry.example.com:5000", "a/b-c/d_e", False),
        ("localhost:5000/my.models/toy:1", "localhost:5000", "my.models/toy", True),
        ("127.1.2.3/toy:1", "127.1.2.3", "toy", True),
        ("[::1]:5000/toy:1", "[::1]:5000", "toy", True),
        ("localhost.example.com/toy:1", "localhost.example.com", "toy", False),
        ("10.0.0.1:5000/toy:1", "10.0.0.1:5000", "toy", False),
    ],
)
def test_references(text: str, registry: str, repository: str, loopback: bool) -> None:  # noqa: FBT001
    reference = Reference.parse(text)
    assert (reference.registry, reference.repository, reference.loopback) == (registry, repository, loopback)
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    ["toy", "toy:1", "host/toy", "host/Toy:1", "host/../toy:1", "host//toy:1", "http://host/toy:1", "host/toy:1 x", "",
     "host/toy@sha256:12", "a@b/toy:1", "host:port/toy:1", "host/toy:1?x=y", "host/toy:1\n"],
)  # fmt: skip
def test_bad_references(text: str) -> None:
    with pytest.raises(InputError, match="REGISTRY"):
        Reference.parse(text)


# --- hostile registries -----------------------------------------------------------------------------------------------
class Hostile:
    """A registry that answers each path with what `answers` has for it: status, headers, body."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                body = outer.answers.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"127.0.0.1:{self.server.server_port}"

    def serve(self, manifest: object, *blobs: tuple[str, bytes]) -> Reference:
        data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        self.answers = {"/v2/toy/manifests/1": data}
        self.answers |= {f"/v2/toy/blobs/sha256:{sha256}": content for sha256, content in blobs}
        return Reference.parse(f"{self.address}/toy:1")


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    server = Hostile()
    yield server
    server.server.shutdown()


def artifact(sha256: str, size: object, name: str = "atlas.json") -> dict[str, object]:
    layer = {"digest": f"sha256:{sha256}", "size": size, "annotations": {"org.cncf.model.filepath": name}}
    return {"artifactType": ARTIFACT_TYPE, "layers": [layer]}


def refused(reference: Reference, tmp_path: Path, kind: type[AtlasportError], part: str) -> None:
    with pytest.raises(kind, match=part) as failure:
        pull(reference, tmp_path / "out" / "x.atlas")
    assert len(str(failure.value).splitlines()) == 1
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"{}", b"null", b"[" * 100_000, {"artifactType": "x"}, {"artifactType": ARTIFACT_TYPE}, b"\xff",
     {"artifactType": ARTIFACT_TYPE, "layers": [None]}, {"artifactType": ARTIFACT_TYPE, "layers": {}},
     artifact("../../x", 1), artifact("0" * 64, "many"), artifact("0" * 64, None), artifact("0" * 64, 1, "other"),
     artifact("0" * 64, 1, "../atlas.json")],
)  # fmt: skip
def test_what_is_no_artifact_is_bad_input(hostile: Hostile, tmp_path: Path, manifest: object) -> None:
    refused(hostile.serve(manifest), tmp_path, InputError, "expected a")
    assert hostile.asked == ["/v2/toy/manifests/1"]


def test_sizes_are_bounded_before_anything_is_read(hostile: Hostile, tmp_path: Path) -> None:
    for size in (17 * 2**20, -1, 10**30):
        refused(hostile.serve(artifact("0" * 64, size)), tmp_path, DamagedArtifactError, "at most 4194304")
    huge = hostile.serve(b" " * (5 * 2**20))
    refused(huge, tmp_path, DamagedArtifactError, "more bytes")


@pytest.mark.parametrize(("content", "part"), [(b"longer", "more bytes"), (b"s", "missing"), (b"lies", "other bytes")])
def test_layers_are_held_to_size_and_digest(hostile: Hostile, tmp_path: Path, content: bytes, part: str) -> None:
    sha256 = hashlib.sha256(b"true").hexdigest()
    refused(hostile.serve(artifact(sha256, 4), (sha256, content)), tmp_path, DamagedArtifactError, part)


def test_another_manifest_than_that_of_the_digest(hostile: Hostile, tmp_path: Path) -> None:
    hostile.serve({})
    digest = "sha256:" + "0" * 64
    hostile.answers[f"/v2/toy/manifests/{digest}"] = b"{}"
    reference = Reference.parse(f"{hostile.address}/toy@{digest}")
    refused(reference, tmp_path, DamagedArtifactError, "found a manifest of digest")


def test_a_bundle_s_manifest_is_checked(hostile: Hostile, tmp_path: Path) -> None:
    data = b'{"format_version": 1}'
    reference = hostile.serve(artifact(sha256_of(data), len(data)), (sha256_of(data), data))
    refused(reference, tmp_path, DamagedArtifactError, "is damaged")


def test_plain_http_is_for_loopback(hostile: Hostile, tmp_path: Path) -> None:
    """By another of its names this machine is a stranger: TLS is spoken, which the server does not."""
    hostile.serve({})
    name = socket.gethostbyname(socket.gethostname())
    if name.startswith("127."):
        name = "localhost.localdomain"
    reference = Reference.parse(f"{name}:{hostile.address.split(':')[1]}/toy:1")
    assert not reference.loopback
    refused(reference, tmp_path, EnvironmentNotFitError, "cannot be reached")
    assert hostile.asked == []


def test_a_registry_that_is_not_there_is_said(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        reference = Reference.parse(f"127.0.0.1:{free.getsockname()[1]}/toy:1")
        with pytest.raises(EnvironmentNotFitError, match="cannot be reached"):
            pull(reference, tmp_path / "x.atlas")


def test_a_digest_cannot_be_pushed_to(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "toy.atlas")
    with pytest.raises(InputError, match="expected a tag"):
        push(bundle, Reference.parse(f"localhost:1/toy:1@sha256:{'0' * 64}"))
