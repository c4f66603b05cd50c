"""HTTP and HTTPS servers on this machine that answer as a test says, and a certificate authority of its own."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAME = socket.gethostname()  # a name of this machine that is not taken for loopback, so that TLS is spoken


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    authorization: str | None


class Request(BaseHTTPRequestHandler):
    """What an answer is written with."""

    protocol_version = "HTTP/1.1"
    server: Server

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def endless(self, status: int, **headers: str) -> None:
        """A body that does not come to an end, until whoever reads it goes away."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b" " * 2**16)
                self.server.sent += 2**16
        except OSError:
            self.close_connection = True

    def _any(self) -> None:
        self.server.asked.append(Asked(self.command, self.path, self.headers["Authorization"]))
        self.server.respond(self)

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = _any  # noqa: N815 - names of http.server

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A server with what it was asked, and how many bytes of endless bodies it got rid of."""

    daemon_threads = True

    def __init__(self, respond: Callable[[Request], None], certificate: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.respond = respond
        self.asked: list[Asked] = []
        self.sent = 0
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.address = f"{NAME if certificate else '127.0.0.1'}:{self.server_port}"
        self.url = f"http{'s' if certificate else ''}://{self.address}"

    def handle_error(self, *_: object) -> None:
        """A client that does not trust the certificate hangs up."""


@dataclass
class Servers:
    """Starts servers, and stops them."""

    certificate: Path
    running: list[Server] = field(default_factory=list)

    def start(self, respond: Callable[[Request], None], *, tls: bool = True) -> Server:
        server = Server(respond, self.certificate if tls else None)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.running.append(server)
        return server


@contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """Yield what starts servers whose certificate is under `folder/root.pem`."""
    started = Servers(_certificate(folder))
    try:
        yield started
    finally:
        for server in started.running:
            server.shutdown()
            server.server_close()


def _certificate(folder: Path) -> Path:
    """Write root.pem, and the server's key and certificate into one file, which is returned."""
    now = dt.datetime.now(dt.timezone.utc)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("root", NAME)]
    pems = []
    for index, (key, name) in enumerate(zip(keys, names, strict=True)):
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(names[0]).public_key(key.public_key())
        builder = builder.serial_number(index + 1).not_valid_before(now - dt.timedelta(1))
        builder = builder.not_valid_after(now + dt.timedelta(1))
        builder = builder.add_extension(x509.BasicConstraints(ca=index == 0, path_length=None), critical=True)
        if index:
            alternatives = [x509.DNSName(NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        signed = builder.sign(keys[0], hashes.SHA256())
        pems.append(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "root.pem").write_bytes(pems[0])
    secret = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(secret + pems[1])
    return folder / "server.pem"
