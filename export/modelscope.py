"""Repositories on ModelScope, through its HTTP interface.

Its own package keeps one folder for a branch, whose files may be of two versions, and neither records the commit nor
checks names and cached files; so this is a client of the two requests that are needed: the list of files, and a file.
Environment, as for the package: MODELSCOPE_ENDPOINT, MODELSCOPE_DOMAIN, MODELSCOPE_API_TOKEN; and the proxies'.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import wrap_file

from export.cache import cache_folder
from export.json_files import read_json
from runtime.artifact import sha256_of
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, InputError

ENDPOINT = "https://modelscope.cn"
_BRANCH = "master"
_TIMEOUT_S = 60
# Tries without a byte of progress, and the pause before the second; it doubles.
_TRIES = 4
_PAUSE_S = 0.5
_BLOCK = 1 << 20
# A list of files has about 500 bytes a file.
_LIST_SIZE = 1 << 24
_PART = ".part"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{8,64}")
_PARTIAL, _MISSING, _NO_RANGE = 206, 404, 416
# What asking again does not change.
_BY_USER = (400, 401, 403, _MISSING)
_BY_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)


@dataclass(frozen=True)
class _File:
    """A file of a repository's top level: size in bytes, SHA-256 (empty where the server gives none)."""

    size: int
    sha256: str


class ModelScopeRepository:
    """A repository on ModelScope.

    Files lie below `modelscope/<owner>@<repository>/` of the user's cache: a folder for each commit, and a list of the
    commit's files, with which what is there is compared each time. Without network what was downloaded before is taken.

    Parameters
    ----------
    name : str
        `owner/repository`.
    revision : str or None
        Branch, tag or commit; None for the main branch.
    alternatives : str
        What a user may give in its place, where ModelScope cannot be reached.

    """

    def __init__(self, name: str, revision: str | None, alternatives: str) -> None:
        self.name = name
        self.commit = ""
        self._revision = revision or _BRANCH
        self._alternatives = alternatives
        self._files: dict[str, _File] | None = None

    def get(self, patterns: Sequence[str]) -> Path:
        """Download the files of its top level that match; return the folder of all that were downloaded.

        Raises
        ------
        InputError
            No such repository or revision, or one that is not public.
        EnvironmentNotFitError
            ModelScope cannot be reached, or the cache not be written.
        DamagedArtifactError
            A file has another size or hash than the list says.

        """
        # "@" is in no name: two repositories never share a folder.
        with cache_folder("modelscope", self.name.replace("/", "@")) as root:
            if self._files is None:
                self.commit, self._files = self._list(root)
            folder = root / self.commit
            folder.mkdir(exist_ok=True)
            for name, file in self._files.items():
                if any(fnmatchcase(name, pattern) for pattern in patterns):
                    self._fetch(name, file, folder)
        return folder

    def names(self) -> Sequence[str]:
        """Return the names of its files."""
        return list(self._files or ())

    def _list(self, root: Path) -> tuple[str, dict[str, _File]]:
        """Return the commit and its files, from the cache where ModelScope cannot be reached."""
        kept = root / f"{urllib.parse.quote(self._revision, safe='')}.json"
        try:
            listed = self._ask()
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code in _BY_USER:
                self._refuse(error.code)
            if not kept.is_file():
                self._unreachable(error)
            listed = read_json(kept)
        else:
            part = kept.with_suffix(_PART)
            part.write_text(json.dumps(listed), encoding="utf-8")
            part.replace(kept)
        return listed["commit"], {name: _File(**entry) for name, entry in listed["files"].items()}

    def _ask(self) -> dict[str, Any]:
        query = {"Revision": self._revision, "Recursive": "False"}
        with self._open("repo/files", query, {}) as answer:
            told = json.loads(answer.read(_LIST_SIZE))
        data = told.get("Data") if isinstance(told, dict) else None
        # An unknown revision has no list of files.
        if not isinstance(data, dict) or not isinstance(data.get("Files"), list):
            self._refuse(_MISSING)
        entries = [entry for entry in data["Files"] if isinstance(entry, dict)]
        return {"commit": _commit_of(data, entries), "files": _files_of(entries)}

    def _fetch(self, name: str, file: _File, folder: Path) -> None:
        """Put a whole file in its place, unless it is there."""
        target, part = folder / name, folder / f"{name}{_PART}"
        if _is_whole(target, file):
            return
        target.unlink(missing_ok=True)
        tries, most = 0, _size(part)
        while _size(part) < file.size or not part.exists():
            error = self._resume(name, file, part)
            if isinstance(error, urllib.error.HTTPError) and error.code == _NO_RANGE:
                # The file ends where the part does: it is not the listed one.
                break
            tries = 0 if _size(part) > most else tries + 1
            most = max(most, _size(part))
            if error is not None:
                if tries >= _TRIES:
                    self._unreachable(error)
                time.sleep(_PAUSE_S * 2**tries)
        if not _is_whole(part, file):
            part.unlink(missing_ok=True)
            raise DamagedArtifactError(
                f"{self._where}: {name}: found another size or SHA-256 than ModelScope's list says; nothing of it is "
                "kept, try again"
            )
        part.replace(target)

    def _resume(self, name: str, file: _File, part: Path) -> Exception | None:
        """Download what is missing of a file; return what interrupted it, unless asking again cannot help."""
        try:
            self._append(name, file, part)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code in _BY_USER:
                self._refuse(error.code)
            if isinstance(error, OSError) and error.errno in _BY_DISK:
                raise
            return error
        return None

    def _append(self, name: str, file: _File, part: Path) -> None:
        """Ask for what is missing of a file; take at most one block more than its size, for the check that follows."""
        have, console = _size(part), Console(stderr=True)
        headers = {"Range": f"bytes={have}-"} if have else {}
        answer = self._open("repo", {"Revision": self._version, "FilePath": name}, headers)
        # A server may send the whole file where a part was asked for.
        resumes = answer.status == _PARTIAL and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        left, hidden = file.size - have if resumes else file.size, not console.is_terminal
        with (
            wrap_file(answer, left, description=name, console=console, transient=True, disable=hidden) as source,
            part.open("ab" if resumes and have else "wb") as out,
        ):
            while out.tell() <= file.size and (block := source.read(_BLOCK)):
                out.write(block)
        if _size(part) < file.size:
            raise http.client.IncompleteRead(b"", file.size - _size(part))

    @property
    def _version(self) -> str:
        # A part of a commit's name is not a revision to ModelScope.
        return self.commit if len(self.commit) >= 40 else self._revision  # noqa: PLR2004 - of SHA-1

    @property
    def _where(self) -> str:
        return f"modelscope:{self.name}@{self._revision}"

    def _open(self, path: str, query: dict[str, str], headers: dict[str, str]) -> Any:
        url = f"{_endpoint()}/api/v1/models/{urllib.parse.quote(self.name)}/{path}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, headers={"User-Agent": "atlasport", **headers})  # noqa: S310 - checked
        token = os.environ.get("MODELSCOPE_API_TOKEN")
        if token:
            # Files are redirected to a storage of another owner, whom the token is not for.
            request.add_unredirected_header("Authorization", f"Bearer {token}")
            request.add_unredirected_header("Cookie", f"m_session_id={token}")
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310 - see _endpoint

    def _refuse(self, code: int) -> NoReturn:
        private = "set MODELSCOPE_API_TOKEN if it is private"
        raise InputError(f"{self._where}: not on ModelScope at {_endpoint()} ({code}); check the name, or {private}")

    def _unreachable(self, error: Exception) -> NoReturn:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise EnvironmentNotFitError(
            f"{self._where}: cannot be fetched from {_endpoint()} ({reason}); try again, as what was fetched is kept, "
            f"or give {self._alternatives}"
        ) from error


def _endpoint() -> str:
    url = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or ENDPOINT
    url = url if "://" in url else f"https://{url}"
    if not url.lower().startswith(("http://", "https://")):
        raise InputError(f"MODELSCOPE_ENDPOINT: expected an http or https address, found {url}; give such an address")
    return url.rstrip("/")


def _commit_of(data: dict[str, Any], entries: list[dict[str, Any]]) -> str:
    """Return the commit of a list of files; where ModelScope tells a part of it, the files' own may have the whole."""
    latest = data.get("LatestCommitter")
    latest = latest if isinstance(latest, dict) else {}
    revisions = [str(entry.get("Revision")) for entry in entries]
    named = [str(latest.get("Id") or ""), str(latest.get("ShortId") or "")]
    whole = [revision for revision in revisions if named[1] and revision.startswith(named[1])]
    for commit in (named[0], *whole[:1], named[1], *_newest(entries)):
        if _COMMIT.fullmatch(commit):
            return commit
    raise ValueError("the list of files names no commit")


def _newest(entries: list[dict[str, Any]]) -> list[str]:
    dated = [entry for entry in entries if isinstance(entry.get("CommittedDate"), int)]
    return [str(entry.get("Revision")) for entry in sorted(dated, key=lambda entry: -entry["CommittedDate"])]


def _files_of(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of the files of the top level. A name that leads elsewhere is none of them."""
    files = {}
    for entry in entries:
        name, size, sha256 = entry.get("Path"), entry.get("Size"), str(entry.get("Sha256") or "").lower()
        plain = isinstance(name, str) and name.isprintable() and not {"/", "\\"} & set(name) and name.strip(".")
        if plain and entry.get("Type") == "blob" and isinstance(size, int) and size >= 0:
            files[str(name)] = asdict(_File(size, sha256 if _SHA256.fullmatch(sha256) else ""))
    return files


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_whole(path: Path, file: _File) -> bool:
    return path.is_file() and _size(path) == file.size and (not file.sha256 or sha256_of(path) == file.sha256)
