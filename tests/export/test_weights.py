"""Where weights come from: folders, and a hub that this test serves over HTTP to the real client."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from export.families import checkpoints
from export.registry import REPOSITORY_ROOT
from export.weights import family_of, resolve_weights
from runtime.errors import ExitCode, InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# The client reads its environment once: each call has a process of its own.
_CALL = """
import sys
from export.weights import resolve_weights
from runtime.errors import AtlasportError
try:
    found = resolve_weights(sys.argv[1], sys.argv[2] or None)
except AtlasportError as error:
    print(error)
    sys.exit(int(error.exit_code))
folder = found.path if found.path.is_dir() else found.path.parent
print(found.origin, found.repo, found.revision, found.licence, *sorted(path.name for path in folder.iterdir()))
print(found.path.name)
"""


@dataclass
class Hub:
    """The files of one repository, tiny/whisper, and what was asked for."""

    files: dict[str, bytes]
    downloads: list[str] = field(default_factory=list)
    url: str = ""


def _answer(hub: Hub, path: str) -> tuple[int, bytes, dict[str, str]]:
    """Return status, body and headers as the hub's API has them."""
    api, _, name = path.rpartition("/")
    if path.startswith("/api/models/tiny/whisper/revision/"):
        siblings = [{"rfilename": file} for file in hub.files]
        return 200, json.dumps({"id": "tiny/whisper", "sha": COMMIT, "siblings": siblings}).encode(), {}
    if path == f"/api/models/tiny/whisper/tree/{COMMIT}":
        sizes = {file: (len(data), hashlib.sha1(data).hexdigest()) for file, data in hub.files.items()}
        tree = [{"type": "file", "path": file, "size": size, "oid": oid} for file, (size, oid) in sizes.items()]
        return 200, json.dumps(tree).encode(), {}
    if api == f"/tiny/whisper/resolve/{COMMIT}":
        data = hub.files[name]
        return 200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
    return 404, b"{}", {"X-Error-Code": "RepoNotFound"}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            path = self.path.partition("?")[0]
            status, body, headers = _answer(hub, path)
            self.send_response(status)
            for header, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
                if "/resolve/" in path:
                    hub.downloads.append(path.rpartition("/")[2])

        def do_GET(self) -> None:
            self.do_HEAD()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture
def hub(pocket_checkpoint: Path) -> Iterator[Hub]:
    names = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "vocab.json")
    hub = Hub({name: (pocket_checkpoint / name).read_bytes() for name in names})
    hub.files["model.safetensors"] = b"safetensors"
    hub.files["pytorch_model.bin"] = b"bin"
    hub.files["tf_model.h5"] = b"h5"
    hub.files["README.md"] = b"---\nlicense: cc-by-4.0\n---\nA model.\n"
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


def _resolve(model: str, weights: str, home: Path, **environment: str) -> tuple[int, list[str], str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    variables |= {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    command = [sys.executable, "-c", _CALL, model, weights]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=REPOSITORY_ROOT, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.partition("\n")[0].split(), done.stdout.strip()


SIDE = [
    "README.md",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "vocab.json",
]


def test_a_hub_repository_is_downloaded_as_far_as_it_is_needed_and_then_cached(hub: Hub, tmp_path: Path):
    code, words, _ = _resolve("my-whisper", "tiny/whisper", tmp_path, HF_ENDPOINT=hub.url)
    assert code == ExitCode.OK
    assert words == ["tiny/whisper", "tiny/whisper", COMMIT, "cc-by-4.0", *sorted([*SIDE, "model.safetensors"])]
    assert sorted(hub.downloads) == sorted([*SIDE, "model.safetensors"])
    again = _resolve("my-whisper", "tiny/whisper", tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert (again[0], again[1]) == (code, words)


def test_a_chat_template_and_an_adapter_come_with_the_checkpoint(hub: Hub, tmp_path: Path):
    extra = ["chat_template.jinja", "processor_config.json", "tokenizer_config.json", "added_tokens.json"]
    extra += ["adapter_config.json", "adapter_model.safetensors"]
    hub.files |= dict.fromkeys(extra, b"{}")
    _, words, _ = _resolve("my-granite", "tiny/whisper", tmp_path, HF_ENDPOINT=hub.url)
    assert sorted(words[4:]) == sorted([*SIDE, "model.safetensors", *extra])


def test_parts_are_those_that_the_index_names(hub: Hub, tmp_path: Path):
    del hub.files["model.safetensors"]
    hub.files["model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode()
    hub.files |= {f"model-{part}.safetensors": b"part" for part in (1, 2, 3)}
    code, words, _ = _resolve("my-whisper", "tiny/whisper", tmp_path, HF_ENDPOINT=hub.url)
    assert code == ExitCode.OK
    assert {"model-1.safetensors", "model-2.safetensors"} <= set(words)
    assert not {"model-3.safetensors", "pytorch_model.bin"} & {*words, *hub.downloads}


def test_pytorch_model_bin_is_taken_where_there_is_nothing_else(hub: Hub, tmp_path: Path):
    del hub.files["model.safetensors"]
    code, words, _ = _resolve("my-whisper", "tiny/whisper", tmp_path, HF_ENDPOINT=hub.url)
    assert code == ExitCode.OK
    assert "pytorch_model.bin" in words


def test_a_nemo_file_is_taken_before_a_conversion_of_it(hub: Hub, tmp_path: Path):
    hub.files |= {"tiny.nemo": b"nemo", "old/tiny.nemo": b"old"}
    code, words, output = _resolve("my-parakeet", "tiny/whisper", tmp_path, HF_ENDPOINT=hub.url)
    assert code == ExitCode.OK
    assert words == ["tiny/whisper", "tiny/whisper", COMMIT, "cc-by-4.0", *sorted([*SIDE, "tiny.nemo"])]
    assert sorted(hub.downloads) == sorted([*SIDE, "tiny.nemo"])
    assert output.endswith("\ntiny.nemo")
    offline = _resolve("my-parakeet", "tiny/whisper", tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert (offline[0], offline[1]) == (code, words)


def test_a_repository_of_a_nemo_file_alone_is_taken(hub: Hub, tmp_path: Path):
    hub.files = {"parakeet.nemo": b"nemo"}
    code, words, output = _resolve("my-parakeet", "tiny/whisper", tmp_path, HF_ENDPOINT=hub.url)
    assert code == ExitCode.OK
    assert words == ["tiny/whisper", "tiny/whisper", COMMIT, "unknown", "parakeet.nemo"]
    assert output.endswith("\nparakeet.nemo")


def test_several_nemo_files_are_refused_by_name(hub: Hub, tmp_path: Path):
    hub.files |= {"a.nemo": b"nemo", "b.nemo": b"nemo"}
    code, _, message = _resolve("my-parakeet", "tiny/whisper", tmp_path, HF_ENDPOINT=hub.url)
    assert code == ExitCode.BAD_INPUT
    assert "expected one .nemo file, found a.nemo, b.nemo" in message
    assert "\n" not in message


def test_a_repository_without_a_checkpoint_is_refused(hub: Hub, tmp_path: Path):
    del hub.files["model.safetensors"], hub.files["pytorch_model.bin"], hub.files["tf_model.h5"]
    code, _, message = _resolve("my-whisper", "tiny/whisper", tmp_path, HF_ENDPOINT=hub.url)
    assert code == ExitCode.BAD_INPUT
    assert "tiny/whisper: expected model.safetensors or pytorch_model.bin or *.nemo, found none of them" in message


def test_a_repository_that_is_not_there_is_told(hub: Hub, tmp_path: Path):
    code, _, message = _resolve("my-whisper", "nobody/nothing", tmp_path, HF_ENDPOINT=hub.url)
    assert code == ExitCode.BAD_INPUT
    assert "nobody/nothing: not on the hub at http://127.0.0.1" in message


@pytest.mark.parametrize("environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_without_a_hub_one_line_names_the_three_alternatives(environment: dict[str, str], tmp_path: Path):
    code, _, message = _resolve("whisper-tiny", "", tmp_path, **environment)
    assert code == ExitCode.ENVIRONMENT
    assert "\n" not in message
    assert message.startswith("openai/whisper-tiny: cannot be fetched from ")
    assert all(part in message for part in ("WEIGHTS=folder", "WEIGHTS=random", "HF_ENDPOINT="))


def test_the_pocket_model_needs_no_hub():
    found = resolve_weights("whisper-pocket", None)
    assert found.path == REPOSITORY_ROOT / "pocket" / "whisper-pocket"
    assert (found.origin, found.repo, found.licence) == ("pocket/whisper-pocket", None, "apache-2.0")


def test_a_folder_may_be_exported_under_any_name(pocket_checkpoint: Path):
    found = resolve_weights("my-whisper", str(pocket_checkpoint))
    assert (found.model, found.path, found.origin) == ("my-whisper", pocket_checkpoint, "whisper-pocket")
    assert (found.repo, found.revision, found.licence) == (None, None, "unknown")


def test_a_nemo_file_is_taken_by_its_name_or_its_folder_s(tmp_path: Path):
    file = Path(shutil.copy(REPOSITORY_ROOT / "pocket" / "parakeet-pocket.nemo", tmp_path / "some.nemo"))
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    found = resolve_weights("my-parakeet", str(file))
    assert (found.path, found.origin, found.licence) == (file, "some.nemo", "unknown")
    found = resolve_weights("my-parakeet", str(tmp_path))
    assert (found.path, found.origin, found.licence) == (file, tmp_path.name, "cc-by-4.0")
    assert family_of(found, checkpoints()) == "parakeet_tdt"


def test_a_nemo_file_of_another_family_s_model_is_refused():
    found = resolve_weights("whisper-tiny", str(REPOSITORY_ROOT / "pocket" / "parakeet-pocket.nemo"))
    with pytest.raises(InputError, match=r"of whisper, found a \.nemo file of EncDecRNNTBPEModel; give another"):
        family_of(found, checkpoints())


def test_the_pocket_parakeet_is_a_file():
    found = resolve_weights("parakeet-pocket", None)
    assert found.path == REPOSITORY_ROOT / "pocket" / "parakeet-pocket.nemo"
    assert (found.origin, found.repo, found.licence) == ("pocket/parakeet-pocket.nemo", None, "apache-2.0")


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("/no/such/folder", "no such folder or file"),
        ("pyproject.toml", "found a file"),
        ("not a hub id", "no such folder"),
        ("owner/missing.nemo", "no such folder or file"),
        ("openai/missing.pt", "no such folder or file"),
        ("modelscope:whisper", "expected owner/repository"),
    ],
)
def test_weights_that_are_nothing_are_refused(weights: str, told: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(REPOSITORY_ROOT)
    with pytest.raises(InputError, match=told):
        resolve_weights("my-whisper", weights)
