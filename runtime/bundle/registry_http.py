"""HTTP with a registry that is not trusted.

https only, but for the registry itself where it is loopback or --insecure says so; what answers elsewhere, by a
redirect, a `Location` or a realm, is held to the same. A login goes to the host that it is for. Nothing is read without
a bound: requests would read a redirect's body, a token or an error to its end, which need not come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin

from runtime.bounded_json import load_json
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError

_TIMEOUT_S = (10, 120)  # to connect, and between two bytes
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_UNAUTHORIZED = 401
_OK = 200
_CHUNK = 2**20
_MAX_TOKEN_BYTES = 2**20
_MAX_TOKEN_VALUES = 1000
_PORTS = {"http": 80, "https": 443}
_LOG_IN = "log in (docker login)"

Origin = tuple[str, str, int]


class RegistryHttp:
    """Requests to one registry and to where it points.

    Parameters
    ----------
    registry : str
        HOST[:PORT].
    plain : bool
        Speak plain http with the registry, and with nobody else.
    where : str
        What is asked for, for messages.

    Raises
    ------
    EnvironmentNotFitError
        oras is not installed.

    """

    def __init__(self, registry: str, *, plain: bool, where: str) -> None:
        try:
            import requests
            from oras.auth import TokenAuth
        except ImportError as error:
            raise EnvironmentNotFitError(
                "oras: is not installed; pip install 'atlasport[registry]', or carry the bundle as a file"
            ) from error
        self.root = f"{'http' if plain else 'https'}://{registry}/v2/"
        self._where = where
        self._origin = _origin(self.root)
        self._registry = registry
        self._token_auth = TokenAuth
        self._authorization: str | None = None
        self._session = requests.Session()
        self._session.auth = _as_it_is  # or requests would take a password from ~/.netrc
        # Or requests would read a redirect's body to its end, although it is not to follow.
        self._session.get_redirect_target = lambda _: None

    def ask(self, method: str, url: str, *, data: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """Return the answer with its body unread; redirects are followed where something is only looked at.

        Raises
        ------
        EnvironmentNotFitError
            Nobody answers, nobody is let in, or the way leads to plain http.

        """
        for _ in range(_MAX_REDIRECTS):
            response = self._send(method, url, data, headers)
            if response.status_code == _UNAUTHORIZED and self._is_registry(url) and self._log_in(response):
                response = self._send(method, url, data, headers)
            if response.status_code not in _REDIRECTS or method not in {"GET", "HEAD"}:
                return response
            response.close()
            url = self.location(url, response)
        raise EnvironmentNotFitError(f"{self._where}: the registry redirects {_MAX_REDIRECTS} times; ask its operator")

    def location(self, url: str, response: Any) -> str:
        """Return where an answer to a request for `url` points.

        Raises
        ------
        EnvironmentNotFitError
            It is no address.

        """
        target = str(response.headers.get("Location", ""))
        try:
            return urljoin(url, target)
        except ValueError as error:
            raise EnvironmentNotFitError(
                f"{self._where}: the registry points to {target[:100]!r}, expected an address; ask its operator"
            ) from error

    def body(self, response: Any, limit: int) -> Iterator[bytes]:
        """Yield the bytes of an answer, as they were sent.

        Raises
        ------
        DamagedArtifactError
            There are more than `limit`.
        EnvironmentNotFitError
            The connection breaks.

        """
        with self._errors():
            # Not stream(): urllib3 reads the line with a chunk's size to its end, http.client 64 KiB of it at most.
            while chunk := response.raw.read(min(_CHUNK, limit + 1), decode_content=False):
                limit -= len(chunk)
                if limit < 0:
                    raise DamagedArtifactError(f"{self._where}: found more bytes than it says; pull it again")
                yield chunk

    def _send(self, method: str, url: str, data: bytes | None, headers: Mapping[str, str] | None) -> Any:
        """Send one request; the registry's authorization goes to the registry only."""
        allowed = dict(headers or {})
        if self._authorization and self._is_registry(url):
            allowed["Authorization"] = self._authorization
        return self._request(method, url, data=data, headers=allowed)

    def _request(self, method: str, url: str, **options: Any) -> Any:
        origin = _origin(url)
        if origin is None or (origin[0] != "https" and origin != self._origin):
            raise EnvironmentNotFitError(
                f"{self._where}: the registry points to {url[:100]!r}, expected https; nothing was sent there, ask its "
                "operator"
            )
        options["headers"]["Accept-Encoding"] = "identity"
        with self._errors():
            return self._session.request(method, url, timeout=_TIMEOUT_S, allow_redirects=False, stream=True, **options)

    def _is_registry(self, url: str) -> bool:
        return _origin(url) == self._origin

    def _host(self, url: str) -> str:
        """Return HOST[:PORT] of a url, by which logins are kept."""
        origin = _origin(url)
        if origin is None:
            raise self._refused(f"its realm is {url[:100]!r}")
        if origin == self._origin:
            return self._registry
        scheme, host, port = origin
        return host if port == _PORTS[scheme] else f"{host}:{port}"

    def _log_in(self, response: Any) -> bool:
        """Take the registry's challenge; False where there is nothing more to say than before."""
        from requests.utils import parse_dict_header

        response.close()
        scheme, _, rest = str(response.headers.get("WWW-Authenticate", "")).partition(" ")
        before = self._authorization
        if scheme.lower() == "basic":
            login = self._login(self._registry)
            if login is None:
                raise self._refused("nobody is logged in")
            self._authorization = f"Basic {login}"
        elif scheme.lower() == "bearer":
            self._authorization = f"Bearer {self._token(parse_dict_header(rest))}"
        return self._authorization != before

    def _token(self, challenge: Mapping[str, str | None]) -> str:
        """Get a token from the challenge's realm, with the login of that host if there is one, else without."""
        realm = str(challenge.get("realm") or "")
        host = self._host(realm)
        login = self._login(host)
        headers = {"Accept": "application/json"} | ({"Authorization": f"Basic {login}"} if login else {})
        params = {name: value for name in ("service", "scope") if (value := challenge.get(name))}
        response = self._request("GET", realm, params=params, headers=headers)
        if response.status_code != _OK:
            response.close()
            without = "" if login else f", and there is no login for {host}"
            raise self._refused(f"{host} answers {response.status_code}{without}")
        try:
            return _token_in(b"".join(self.body(response, _MAX_TOKEN_BYTES)))
        except (ValueError, LookupError, TypeError, AttributeError, DamagedArtifactError) as error:
            raise self._refused(f"{host} gives no token") from error

    def _login(self, host: str) -> str | None:
        """Return the login for exactly this host, as `docker login` keeps it."""
        from oras.container import Container

        container = Container("repository")
        container.registry = host
        auth = self._token_auth()
        try:
            auth.load_configs(container)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise self._refused(f"the logins of docker cannot be read: {reason}") from error
        login = getattr(auth, "_basic_auth", None)
        return login if isinstance(login, str) else None

    def _refused(self, reason: str) -> EnvironmentNotFitError:
        return EnvironmentNotFitError(f"{self._where}: the registry lets nobody in ({reason}); {_LOG_IN}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from requests.exceptions import RequestException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (RequestException, HTTPError, OSError, ValueError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise EnvironmentNotFitError(
                f"{self._where}: the registry cannot be reached ({reason}); check name and network"
            ) from error


def _origin(url: str) -> Origin | None:
    """Return scheme, host and port, by the parser that requests goes by; None for what is no plain address."""
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    try:
        parts = parse_url(url)
    except LocationParseError:
        return None
    # By another parser, evil.example in https://evil.example\\@registry.example/ is a password.
    if parts.auth is not None or "\\" in url or not parts.host or parts.scheme not in _PORTS:
        return None
    return parts.scheme, parts.host.lower(), parts.port or _PORTS[parts.scheme]


def _token_in(data: bytes) -> str:
    found = load_json(data, _MAX_TOKEN_VALUES)
    token = found.get("token") or found["access_token"]
    if not isinstance(token, str) or not (token.isascii() and token.isprintable()):
        raise TypeError("no token")
    return token


def _as_it_is(request: Any) -> Any:
    return request
