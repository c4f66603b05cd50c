"""A registry that wants a login, more of the memory, or the traffic elsewhere: real servers, with TLS and without."""

from __future__ import annotations

import base64
import json
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from answering import NAME, Request, Server, Servers, servers
from toy_bundle import toy_bundle

from runtime.bundle.archive import open_bundle
from runtime.bundle.registry import ARTIFACT_TYPE, Reference, pull, push
from runtime.errors import AtlasportError, DamagedArtifactError, EnvironmentNotFitError, InputError

LOGIN = base64.b64encode(b"user:secret").decode()
TOKEN = json.dumps({"token": "the-token"}).encode()


def _resolves() -> bool:
    try:
        return socket.gethostbyname(NAME) == "127.0.0.1" and NAME != "localhost"
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not _resolves(), reason="this machine's name does not lead to 127.0.0.1")


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    """Servers, their root trusted as requests is told to, and nobody's logins."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "root.pem"))
    with servers(tmp_path) as started:
        yield started


def log_in(home: Path, *hosts: str) -> None:
    (home / ".docker").mkdir(exist_ok=True)
    auths = {"auths": {host: {"auth": LOGIN} for host in hosts}}
    (home / ".docker" / "config.json").write_text(json.dumps(auths))


class Stored:
    """Answers of a registry that has one bundle, as `toy:1`."""

    def __init__(self, bundle: Path) -> None:
        self.data = bundle.read_bytes()
        self.manifest: dict[str, object] = {"artifactType": ARTIFACT_TYPE, "layers": []}
        self.blobs: dict[str, bytes] = {}
        with open_bundle(bundle) as reader:
            import hashlib

            named = {"atlas.json": reader.manifest_bytes}
            self.blobs = {sha256: b"".join(chunks) for sha256, chunks in reader.blobs()}
        for name, data in named.items():
            sha256 = hashlib.sha256(data).hexdigest()
            self.blobs[sha256] = data
            layer = {"digest": f"sha256:{sha256}", "size": len(data)}
            self.manifest["layers"] = [{**layer, "annotations": {"org.cncf.model.filepath": name}}]

    def answer(self, request: Request) -> None:
        if request.path == "/v2/toy/manifests/1":
            request.answer(200, json.dumps(self.manifest).encode())
        elif (sha256 := request.path.removeprefix("/v2/toy/blobs/sha256:")) in self.blobs:
            request.answer(200, self.blobs[sha256])
        else:
            request.answer(404)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(toy_bundle(tmp_path / "toy.atlas"))


def reference(server: Server) -> Reference:
    return Reference.parse(f"{server.address}/toy:1")


def refused(
    server: Server, tmp_path: Path, *words: str, kind: type[AtlasportError] = EnvironmentNotFitError, **options: bool
) -> None:
    with pytest.raises(kind) as failure:
        pull(reference(server), tmp_path / "out.atlas", **options)
    message = str(failure.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    assert not list(tmp_path.glob("*out.atlas*"))


# --- TLS --------------------------------------------------------------------------------------------------------------
def test_tls_is_that_of_requests(web: Servers, stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = web.start(stored.answer)
    assert pull(reference(server), tmp_path / "pulled.atlas").read_bytes() == stored.data
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    refused(server, tmp_path, "cannot be reached", "certificate")
    assert all(asked.path for asked in server.asked[: len(stored.blobs) + 1])
    assert len(server.asked) == len(stored.blobs) + 1


# --- where a login goes -----------------------------------------------------------------------------------------------
def guarded(stored: Stored, challenge: Callable[[], str], accepted: str) -> Callable[[Request], None]:
    def respond(request: Request) -> None:
        if request.headers["Authorization"] == accepted:
            stored.answer(request)
        else:
            request.answer(401, WWW_Authenticate=challenge())

    return respond


def test_a_token_of_the_registry_s_own_realm(web: Servers, stored: Stored, tmp_path: Path) -> None:
    def respond(request: Request) -> None:
        if request.path.startswith("/token?"):
            assert request.path == "/token?service=here&scope=repository%3Atoy%3Apull%2Cpush"
            request.answer(200 if request.headers["Authorization"] == f"Basic {LOGIN}" else 401, TOKEN)
        else:
            challenge = f'Bearer realm="{server.url}/token",service="here",scope="repository:toy:pull,push"'
            guarded(stored, lambda: challenge, "Bearer the-token")(request)

    server = web.start(respond)
    refused(server, tmp_path, "no login for", "docker login")
    log_in(tmp_path, server.address)
    assert pull(reference(server), tmp_path / "pulled.atlas").read_bytes() == stored.data
    # One token for all.
    assert sum(asked.path.startswith("/token") for asked in server.asked) == 2


def test_a_basic_login(web: Servers, stored: Stored, tmp_path: Path) -> None:
    server = web.start(guarded(stored, lambda: 'Basic realm="x"', f"Basic {LOGIN}"))
    refused(server, tmp_path, "nobody is logged in", "docker login")
    log_in(tmp_path, server.address)
    assert pull(reference(server), tmp_path / "pulled.atlas").read_bytes() == stored.data


def test_a_login_is_not_sent_again_and_again(web: Servers, stored: Stored, tmp_path: Path) -> None:
    server = web.start(guarded(stored, lambda: 'Basic realm="x"', "Basic another"))
    log_in(tmp_path, server.address)
    refused(server, tmp_path, "401", "docker login")
    assert len(server.asked) == 2


@pytest.mark.parametrize("tls", [False, True])
def test_a_realm_elsewhere_gets_no_login(web: Servers, stored: Stored, tmp_path: Path, tls: bool) -> None:  # noqa: FBT001
    """Over http it is not asked at all; over https without the login, which is the registry's."""
    elsewhere = web.start(lambda request: request.answer(401), tls=tls)
    server = web.start(guarded(stored, lambda: f'Bearer realm="{elsewhere.url}/token",service="x"', "Bearer x"))
    log_in(tmp_path, server.address)
    refused(server, tmp_path, elsewhere.address)
    assert [asked.authorization for asked in elsewhere.asked] == [None] * tls


def test_a_realm_elsewhere_may_have_a_login_of_its_own(web: Servers, stored: Stored, tmp_path: Path) -> None:
    def respond(request: Request) -> None:
        request.answer(200 if request.headers["Authorization"] == f"Basic {LOGIN}" else 401, TOKEN)

    elsewhere = web.start(respond)
    server = web.start(guarded(stored, lambda: f'Bearer realm="{elsewhere.url}/t",service="x"', "Bearer the-token"))
    log_in(tmp_path, elsewhere.address)
    assert pull(reference(server), tmp_path / "pulled.atlas").read_bytes() == stored.data


@pytest.mark.parametrize("trick", ["http://{1}\\@{0}/t", "http://{0}@{1}/t", "http://{0}\\@{1}/t", "//{1}/t", "{1}/t",
                                   "file:///etc/passwd", "http://[{1}/t", ""])  # fmt: skip
def test_addresses_that_parsers_read_in_two_ways(web: Servers, stored: Stored, tmp_path: Path, trick: str) -> None:
    """The registry is loopback, so plain http is spoken with it, and with nobody who looks like it."""
    elsewhere = web.start(lambda request: request.answer(200, TOKEN), tls=False)
    server = web.start(guarded(stored, lambda: f'Bearer realm="{realm}",service="x"', "Bearer x"), tls=False)
    realm = trick.format(server.address, elsewhere.address)
    log_in(tmp_path, server.address)
    refused(server, tmp_path)
    assert elsewhere.asked == []


def test_netrc_is_not_looked_at(web: Servers, stored: Stored, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine {NAME} login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    server = web.start(stored.answer)
    pull(reference(server), tmp_path / "pulled.atlas")
    assert {asked.authorization for asked in server.asked} == {None}


# --- redirects --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tls", [False, True])
def test_a_redirect_is_followed_without_the_login_and_not_to_http(
    web: Servers, stored: Stored, tmp_path: Path, tls: bool  # noqa: FBT001
) -> None:  # fmt: skip
    elsewhere = web.start(stored.answer, tls=tls)

    def respond(request: Request) -> None:
        if "/blobs/" in request.path:
            request.answer(307, Location=f"{elsewhere.url}{request.path}")
        else:
            stored.answer(request)

    server = web.start(guarded_by(respond))
    log_in(tmp_path, server.address)
    if tls:
        assert pull(reference(server), tmp_path / "pulled.atlas").read_bytes() == stored.data
        assert {asked.authorization for asked in elsewhere.asked} == {None}
        assert {asked.authorization for asked in server.asked} == {None, f"Basic {LOGIN}"}
    else:
        refused(server, tmp_path, f"http://{elsewhere.address}", "expected https")
        assert elsewhere.asked == []


def guarded_by(respond: Callable[[Request], None]) -> Callable[[Request], None]:
    def guard(request: Request) -> None:
        if request.headers["Authorization"] == f"Basic {LOGIN}":
            respond(request)
        else:
            request.answer(401, WWW_Authenticate='Basic realm="x"')

    return guard


def test_insecure_is_for_the_registry_alone(web: Servers, stored: Stored, tmp_path: Path) -> None:
    elsewhere = web.start(stored.answer, tls=False)
    server = web.start(lambda request: request.answer(307, Location=f"{elsewhere.url}{request.path}"), tls=False)
    refused(server, tmp_path, "expected https", insecure=True)
    assert elsewhere.asked == []


def test_redirects_come_to_an_end(web: Servers, tmp_path: Path) -> None:
    server = web.start(lambda request: request.answer(302, Location=request.path))
    refused(server, tmp_path, "redirects 5 times")
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    "location", ["http://[", "https://[::1/x", "https://", "https://a b/", "ftp://x/", "x" * 10_000]
)
def test_a_redirect_to_what_is_no_address(web: Servers, tmp_path: Path, location: str) -> None:
    server = web.start(lambda request: request.answer(307, Location=location))
    refused(server, tmp_path)


@pytest.mark.parametrize("tls", [False, True])
def test_an_upload_goes_elsewhere_without_the_login_and_not_over_http(
    web: Servers, tmp_path: Path, tls: bool  # noqa: FBT001
) -> None:  # fmt: skip
    elsewhere = web.start(lambda request: request.answer(500), tls=tls)

    def respond(request: Request) -> None:
        if request.command == "POST":
            request.answer(202, Location=f"{elsewhere.url}/upload")
        else:
            request.answer(404)

    server = web.start(guarded_by(respond))
    log_in(tmp_path, server.address)
    with pytest.raises(EnvironmentNotFitError, match="500" if tls else "expected https"):
        push(toy_bundle(tmp_path / "toy.atlas"), reference(server))
    assert [(asked.method, asked.authorization) for asked in elsewhere.asked] == [("PATCH", None)] * tls
    assert ("POST", f"Basic {LOGIN}") in {(asked.method, asked.authorization) for asked in server.asked}


# --- bodies without an end --------------------------------------------------------------------------------------------
def _at(path: str, stored: Stored, endless: Callable[[Request], None]) -> Callable[[Request], None]:
    return lambda request: endless(request) if path in request.path else stored.answer(request)


@pytest.mark.parametrize(
    ("path", "status", "headers", "kind"),
    [
        ("/manifests/", 200, {}, DamagedArtifactError),
        ("/blobs/", 200, {}, DamagedArtifactError),
        ("/manifests/", 200, {"Content_Length": str(2**60)}, DamagedArtifactError),
        ("/manifests/", 307, {"Location": "/v2/toy/elsewhere"}, InputError),
        ("/blobs/", 500, {}, EnvironmentNotFitError),
        ("/manifests/", 404, {}, InputError),
        ("/manifests/", 401, {"WWW_Authenticate": 'Basic realm="x"'}, EnvironmentNotFitError),
        ("/manifests/", 200, {"Transfer_Encoding": "chunked"}, EnvironmentNotFitError),
    ],
)
def test_a_body_without_an_end(  # noqa: PLR0917 - of a table
    web: Servers,
    stored: Stored,
    tmp_path: Path,
    path: str,
    status: int,
    headers: dict[str, str],
    kind: type[AtlasportError],
) -> None:
    server = web.start(_at(path, stored, lambda request: request.endless(status, **headers)))
    before = psutil.Process().memory_info().rss
    refused(server, tmp_path, kind=kind)
    # Some of it lies in the buffers of the two ends.
    assert server.sent < 40 * 2**20
    assert psutil.Process().memory_info().rss - before < 100e6


@pytest.mark.parametrize("status", [200, 401, 307])
def test_a_token_without_an_end(web: Servers, stored: Stored, tmp_path: Path, status: int) -> None:
    def respond(request: Request) -> None:
        if request.path.startswith("/token"):
            request.endless(status, Location="/token")
        else:
            guarded(stored, lambda: f'Bearer realm="{server.url}/token"', "Bearer x")(request)

    server = web.start(respond)
    log_in(tmp_path, server.address)
    refused(server, tmp_path, "lets nobody in")
    assert server.sent < 40 * 2**20


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"token": 1e999}', b'{"token": "a\\r\\nX-Evil: 1"}', b"[" * 10**6]
)
def test_what_is_no_token(web: Servers, stored: Stored, tmp_path: Path, body: bytes) -> None:
    def respond(request: Request) -> None:
        if request.path.startswith("/token"):
            request.answer(200, body)
        else:
            guarded(stored, lambda: f'Bearer realm="{server.url}/token"', "Bearer x")(request)

    server = web.start(respond)
    refused(server, tmp_path, "gives no token")


def test_a_compressed_layer_is_not_unpacked(web: Servers, stored: Stored, tmp_path: Path) -> None:
    """A gigabyte in a megabyte."""
    import gzip

    bomb = gzip.compress(bytes(2**28), 1)
    server = web.start(_at("/manifests/", stored, lambda request: request.answer(200, bomb, Content_Encoding="gzip")))
    before = psutil.Process().memory_info().rss
    refused(server, tmp_path, "expected a ModelPack", kind=InputError)
    assert psutil.Process().memory_info().rss - before < 100e6


@pytest.mark.parametrize("size", ["1e999", "-1e999", "NaN", "1.5", "true", '"1"', "null", "[]", "-1", "1" * 400])
def test_sizes_that_are_none(web: Servers, tmp_path: Path, size: str) -> None:
    digest = "sha256:" + "0" * 64
    layer = f'{{"digest":"{digest}","size":{size},"annotations":{{"org.cncf.model.filepath":"atlas.json"}}}}'
    manifest = f'{{"artifactType":"{ARTIFACT_TYPE}","layers":[{layer}]}}'.encode()
    server = web.start(lambda request: request.answer(200, manifest))
    refused(server, tmp_path, kind=DamagedArtifactError if size in {"-1", "1" * 400} else InputError)


def test_the_control_is_that_the_servers_answer(web: Servers, stored: Stored) -> None:
    """Python's own client is let through where ours is not: it would have followed."""
    elsewhere = web.start(stored.answer, tls=False)
    with urllib.request.urlopen(f"{elsewhere.url}/v2/toy/manifests/1") as response:
        assert json.load(response) == stored.manifest
