"""Repositories on ModelScope, which this test serves over HTTP as its interface does."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from export import modelscope
from export.weights import Weights, resolve_weights
from runtime.errors import AtlasportError, DamagedArtifactError, EnvironmentNotFitError, ExitCode, InputError

COMMIT = "83ee97c66e841048bedc5c02c15ce2f3ed259feb"
OLDER = "f194f50981eaaa6019bbec5049a4c7e1fd294110"
API = "/api/v1/models/owner/tiny"
TENSORS = os.urandom(5_000_000)
FILES = {
    "README.md": b"---\nlicense: cc-by-4.0\n---\nA model.\n",
    "config.json": b'{"model_type": "whisper"}',
    "merges.txt": b"",
    "model.safetensors": TENSORS,
    "onnx/model.onnx": b"onnx",
    "pytorch_model.bin": b"bin",
    "vocab.json": b"{}",
}


@dataclass
class Site:
    """One repository, owner/tiny, and every request; `cut` ends answers after so many bytes, as often as it says."""

    files: dict[str, bytes]
    url: str = ""
    revisions: tuple[str, ...] = ("master", COMMIT)
    latest: Any = field(default_factory=lambda: {"Id": "", "ShortId": COMMIT[:8]})
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    ranges: bool = True
    redirects: bool = False
    code: int = 200
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: list[tuple[str, str | None]] = field(default_factory=list)

    def fetched(self) -> list[str]:
        return [name for name, _, _ in self.requests if name]


def _listing(site: Site, revision: str) -> bytes:
    files = [
        {
            "Path": name,
            "Name": name.rpartition("/")[2],
            "Type": "blob",
            "Size": len(data),
            "Sha256": hashlib.sha256(data).hexdigest(),
            "Revision": COMMIT if name == "config.json" else OLDER,
            "CommittedDate": 2 if name == "config.json" else 1,
            **site.entries.get(name, {}),
        }
        for name, data in site.files.items()
    ]
    files.append({"Path": "onnx", "Name": "onnx", "Type": "tree", "Size": 0})
    # An unknown revision is no error to ModelScope.
    known = revision in site.revisions
    data = {"Files": files if known else None, "LatestCommitter": site.latest if known else None}
    return json.dumps({"Code": 200, "Data": data, "Message": "success", "Success": True}).encode()


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site = self.site
        address = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        name = query.get("FilePath", "")
        site.tokens.append((address.path, self.headers.get("Authorization")))
        site.requests.append((name, query.get("Revision", ""), self.headers.get("Range")))
        if site.code != 200:
            self._answer(site.code, b"{}")
        elif address.path == f"{API}/repo/files":
            self._answer(200, _listing(site, query["Revision"]))
        elif address.path == f"{API}/repo" and site.redirects:
            site.requests.pop()
            self._answer(302, b"", Location=f"/storage?{address.query}")
        elif address.path in {f"{API}/repo", "/storage"} and name in site.files:
            self._file(site.files[name])
        else:
            self._answer(404, b"{}")

    def _file(self, data: bytes) -> None:
        asked = self.headers.get("Range", "bytes=0-") if self.site.ranges else "bytes=0-"
        start = int(asked[6:-1])
        if start >= len(data) > 0:
            self._answer(416, b"")
        elif start:
            self._answer(206, data[start:], **{"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
        else:
            self._answer(200, data)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for header, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        size = self.site.cut.pop(0) if len(body) > 1_000_000 and self.site.cut else len(body)
        self.wfile.write(body[:size])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(dict(FILES))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for name in ("MODELSCOPE_DOMAIN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", site.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(modelscope, "_PAUSE_S", 0.001)
    yield site
    server.shutdown()
    server.server_close()


def _resolve(revision: str = "") -> Weights:
    return resolve_weights("my-whisper", f"modelscope:owner/tiny{revision}")


def _names(weights: Weights) -> list[str]:
    assert weights.path is not None
    return sorted(path.name for path in weights.path.iterdir())


def _is_one_line(error: AtlasportError, code: ExitCode, *parts: str) -> bool:
    return error.exit_code == code and "\n" not in str(error) and all(part in str(error) for part in parts)


TAKEN = ["README.md", "config.json", "merges.txt", "model.safetensors", "vocab.json"]


def test_a_repository_is_downloaded_as_far_as_it_is_needed_and_then_cached(site: Site, monkeypatch: pytest.MonkeyPatch):
    found = _resolve()
    assert (found.origin, found.repo, found.revision, found.licence) == (
        "modelscope:owner/tiny",
        None,
        COMMIT,
        "cc-by-4.0",
    )
    assert _names(found) == sorted(site.fetched()) == TAKEN
    assert (found.path / "model.safetensors").read_bytes() == TENSORS  # type: ignore[operator]
    # All of one commit, whatever is pushed in between.
    assert {revision for name, revision, _ in site.requests if name} == {COMMIT}
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    again = _resolve()
    assert again == found
    with pytest.raises(EnvironmentNotFitError) as caught:
        _resolve("@v2")
    assert _is_one_line(
        caught.value, ExitCode.ENVIRONMENT, "modelscope:owner/tiny@v2", "http://127.0.0.1:9", "WEIGHTS="
    )


def test_a_push_is_taken_into_a_folder_of_its_own(site: Site):
    first = _resolve()
    site.files["config.json"] = b'{"model_type": "whisper", "new": 1}'
    site.latest = {"Id": "1" * 40, "ShortId": "1" * 8}
    second = _resolve()
    assert (first.revision, second.revision) == (COMMIT, "1" * 40)
    assert first.path != second.path
    assert (second.path / "config.json").read_bytes() == site.files["config.json"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("latest", "commit"),
    [
        ({"Id": COMMIT, "ShortId": ""}, COMMIT),
        ({"ShortId": "0" * 8}, "0" * 8),
        (None, COMMIT),
        ({"Id": "../x"}, COMMIT),
    ],
)
def test_the_commit_is_recorded_in_each_form_that_modelscope_tells_it(site: Site, latest: Any, commit: str):
    site.latest = latest
    assert _resolve().revision == commit


def test_a_revision_may_be_named(site: Site):
    _resolve(f"@{COMMIT}")
    assert site.requests[0] == ("", COMMIT, None)
    with pytest.raises(InputError) as caught:
        _resolve("@nothing")
    assert _is_one_line(caught.value, ExitCode.BAD_INPUT, "modelscope:owner/tiny@nothing: not on ModelScope")


def test_a_download_that_is_cut_is_resumed_where_it_stopped(site: Site):
    site.cut = [2_000_000, 1_500_000]
    found = _resolve()
    assert (found.path / "model.safetensors").read_bytes() == TENSORS  # type: ignore[operator]
    ranges = [asked for name, _, asked in site.requests if name == "model.safetensors"]
    assert ranges == [None, "bytes=2000000-", "bytes=3500000-"]


def test_a_download_that_was_given_up_is_resumed_the_next_time(site: Site):
    site.cut = [2_000_000, 0, 0, 0, 0]
    with pytest.raises(EnvironmentNotFitError) as caught:
        _resolve()
    assert _is_one_line(caught.value, ExitCode.ENVIRONMENT, site.url, "try again")
    site.requests.clear()
    found = _resolve()
    assert (found.path / "model.safetensors").read_bytes() == TENSORS  # type: ignore[operator]
    assert [asked for name, _, asked in site.requests if name == "model.safetensors"] == ["bytes=2000000-"]


def test_a_server_without_ranges_sends_the_file_again(site: Site):
    site.ranges, site.cut = False, [2_000_000]
    found = _resolve()
    assert (found.path / "model.safetensors").read_bytes() == TENSORS  # type: ignore[operator]


@pytest.mark.parametrize(
    "entry", [{"Size": len(TENSORS) - 7}, {"Sha256": "0" * 64}, {"Size": len(TENSORS) - 3_000_000, "Sha256": ""}]
)
def test_a_file_that_is_not_the_listed_one_is_not_kept(site: Site, tmp_path: Path, entry: dict[str, Any]):
    site.entries["model.safetensors"] = entry
    with pytest.raises(DamagedArtifactError) as caught:
        _resolve()
    assert _is_one_line(caught.value, ExitCode.DAMAGED, "model.safetensors", "SHA-256")
    assert not list(tmp_path.rglob("model.safetensors*"))


@pytest.mark.parametrize(("ranges", "refused"), [(True, DamagedArtifactError), (False, EnvironmentNotFitError)])
def test_a_file_that_is_shorter_than_listed_is_not_taken(
    site: Site, tmp_path: Path, *, ranges: bool, refused: type[AtlasportError]
):
    site.entries["model.safetensors"] = {"Size": len(TENSORS) + 5}
    site.ranges = ranges
    with pytest.raises(refused):
        _resolve()
    assert not list(tmp_path.rglob("model.safetensors"))
    assert site.fetched().count("model.safetensors") < 7


def test_a_changed_file_of_the_cache_is_fetched_again(site: Site):
    found = _resolve()
    path = found.path / "model.safetensors"  # type: ignore[operator]
    path.write_bytes(bytes(len(TENSORS)))
    _resolve()
    assert path.read_bytes() == TENSORS
    assert site.fetched().count("model.safetensors") == 2
    assert site.fetched().count("config.json") == 1


@pytest.mark.parametrize(
    "name", ["../tiny.nemo", "/tmp/tiny.nemo", "a\\tiny.nemo", "..", "x\n.nemo", "\x00.nemo", "a/../../tiny.nemo"]
)
def test_names_that_lead_elsewhere_are_no_files_of_it(site: Site, tmp_path: Path, name: str):
    site.files = {**FILES, name: b"nemo"}
    assert _names(_resolve()) == TAKEN
    assert name not in site.fetched()
    assert not list(tmp_path.rglob("*.nemo"))


def test_a_nemo_file_is_taken_before_a_conversion_of_it(site: Site):
    site.files["tiny.nemo"] = b"nemo"
    found = _resolve()
    assert found.path is not None
    assert found.path.name == "tiny.nemo"
    assert "model.safetensors" not in site.fetched()


def test_what_a_repository_holds_in_place_of_a_checkpoint_is_named(site: Site):
    site.files = {"tiny-q4_0.gguf": b"GGUF"}
    with pytest.raises(InputError) as caught:
        _resolve()
    assert _is_one_line(caught.value, ExitCode.BAD_INPUT, "owner/tiny: is a GGUF file")


def test_only_the_tokenizer_is_fetched_of_its_repository(site: Site, pocket_checkpoint: Path):
    found = resolve_weights("my-whisper", str(pocket_checkpoint), tokenizer="modelscope:owner/tiny")
    assert found.path == pocket_checkpoint
    assert found.tokenizer is not None
    assert (
        sorted(path.name for path in found.tokenizer.iterdir())
        == sorted(site.fetched())
        == ["merges.txt", "vocab.json"]
    )


@pytest.mark.parametrize(("code", "exit_code"), [(404, 2), (403, 2), (500, 3)])
def test_a_repository_that_is_not_given_is_told(site: Site, code: int, exit_code: int):
    site.code = code
    with pytest.raises(AtlasportError) as caught:
        _resolve()
    assert _is_one_line(caught.value, ExitCode(exit_code), "modelscope:owner/tiny@master", site.url, str(code))


def test_an_answer_that_is_no_list_is_told(site: Site):
    site.latest, site.entries = None, {name: {"CommittedDate": None} for name in FILES}
    with pytest.raises(EnvironmentNotFitError) as caught:
        _resolve()
    assert _is_one_line(caught.value, ExitCode.ENVIRONMENT, "names no commit")


def test_a_token_goes_to_modelscope_and_not_to_its_storage(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    site.redirects = True
    _resolve()
    sent = {(path, token) for path, token in site.tokens}
    assert sent == {
        ("/api/v1/models/owner/tiny/repo/files", "Bearer secret"),
        ("/api/v1/models/owner/tiny/repo", "Bearer secret"),
        ("/storage", None),
    }


def test_an_endpoint_of_another_scheme_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "file:///etc")
    with pytest.raises(InputError, match="expected an http or https address"):
        _resolve()
    # Without a scheme it is a domain, as for ModelScope's own package.
    monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "127.0.0.1:9")
    with pytest.raises(EnvironmentNotFitError, match=r"https://127\.0\.0\.1:9"):
        _resolve()
    assert not site.requests
