from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_artifact import seal

from runtime.artifact import MAX_MANIFEST_BYTES, artifacts_in, find_artifact, open_artifact
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, ExitCode, InputError
from runtime.manifest import MANIFEST_NAME, Graph


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    (folder / "audio").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(random.Random(0).randbytes(3_000_000))
    (folder / "encoder.onnx").write_bytes(b"graph")
    (folder / "audio" / "speech.wav").write_bytes(b"RIFF")
    (folder / "empty").write_bytes(b"")
    seal(folder)
    return folder


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(DamagedArtifactError) as caught:
        open_artifact(folder)
    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.DAMAGED == 4
    assert "\n" not in message
    for word in words:
        assert word in message


def test_opens(folder: Path):
    artifact = open_artifact(folder)
    assert artifact.content.model == "toy"
    assert artifact.file("audio/speech.wav").read_bytes() == b"RIFF"


def test_what_verify_writes_is_ignored_and_out_of_reach(folder: Path):
    (folder / "results").mkdir()
    (folder / "results" / "accuracy.json").write_text("{}")
    (folder / "report.html").symlink_to("/etc/hostname")
    artifact = open_artifact(folder)
    with pytest.raises(DamagedArtifactError, match=r"results/accuracy\.json"):
        artifact.file("results/accuracy.json")


def test_any_flipped_bit_of_any_file_is_refused(folder: Path):
    rng = random.Random(1)
    for path in [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]:
        data = path.read_bytes()
        for at in {0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(8))}:
            changed = bytearray(data)
            changed[at] ^= 1 << rng.randrange(8)
            path.write_bytes(changed)
            refused(folder, path.name)
        path.write_bytes(data)
    open_artifact(folder)


def test_what_is_opened_to_run_is_hashed_before_it_is_used(folder: Path):
    (folder / MANIFEST_NAME).unlink()
    seal(folder, {"encoder": Graph(precision="fp32", inputs=(), outputs=(), files={"onnx": "encoder.onnx"})})
    (folder / "encoder.onnx").write_bytes(b"grapH")
    artifact = open_artifact(folder, to_run=True)
    assert artifact.file("empty") == folder / "empty"
    for opened in (artifact, artifact.reopened()):
        with pytest.raises(DamagedArtifactError, match=r"encoder\.onnx: expected SHA-256"):
            opened.file("encoder.onnx")
    (folder / "encoder.onnx").write_bytes(b"graph")
    assert artifact.file("encoder.onnx").read_bytes() == b"graph"
    (folder / "weights.safetensors").write_bytes(random.Random(1).randbytes(3_000_000))
    with pytest.raises(DamagedArtifactError, match=r"weights\.safetensors"):  # no program asks for them by name
        open_artifact(folder, to_run=True)


@pytest.mark.parametrize("size", [b"", b"a graph"])
def test_what_is_opened_to_run_has_the_right_sizes(folder: Path, size: bytes):
    (folder / MANIFEST_NAME).unlink()
    seal(folder, {"encoder": Graph(precision="fp32", inputs=(), outputs=(), files={"onnx": "encoder.onnx"})})
    (folder / "encoder.onnx").write_bytes(size)
    with pytest.raises(DamagedArtifactError, match=r"encoder\.onnx"):
        open_artifact(folder, to_run=True)


@pytest.mark.parametrize("change", ["truncate", "append", "delete", "grow an empty one"])
def test_changed_length_is_refused(folder: Path, change: str):
    path = folder / ("empty" if change.startswith("grow") else "weights.safetensors")
    if change == "delete":
        path.unlink()
        refused(folder, path.name, "found none", "export")
        return
    data = path.read_bytes()
    path.write_bytes(data[:-1] if change == "truncate" else data + b"\0")
    refused(folder, path.name, f"expected {len(data)} bytes, found {path.stat().st_size}")


@pytest.mark.parametrize("name", ["encoder.onnx", "audio/speech.wav", MANIFEST_NAME])
@pytest.mark.parametrize("kind", ["symbolic link", "hardlink"])
def test_links_are_refused(folder: Path, tmp_path: Path, name: str, kind: str):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder / name, elsewhere)
    (folder / name).symlink_to(elsewhere) if kind == "symbolic link" else os.link(elsewhere, folder / name)
    refused(folder, name, kind)


def test_linked_folder_inside_is_refused(folder: Path, tmp_path: Path):
    shutil.move(folder / "audio", tmp_path / "audio")
    (folder / "audio").symlink_to(tmp_path / "audio")
    refused(folder, "audio/speech.wav", "symbolic link")


def test_link_to_the_artifact_is_allowed(folder: Path, tmp_path: Path):
    (tmp_path / "current").symlink_to(folder)
    open_artifact(tmp_path / "current")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)])
def test_what_is_not_a_file_is_refused(folder: Path, make: Callable[[Path], None]):
    for name in ("encoder.onnx", MANIFEST_NAME):
        (folder / name).rename(folder / "kept")
        make(folder / name)
        refused(folder, name)
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        (folder / "kept").rename(folder / name)


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "audio/../../outside", "a\\b", "./empty", "", "a\0b"])
def test_paths_out_of_the_folder_are_refused(folder: Path, tmp_path: Path, path: str):
    (tmp_path / "outside").write_bytes(b"")
    text = (folder / MANIFEST_NAME).read_text()
    escaped = path.replace("\\", "\\\\").replace("\0", "\\u0000")
    (folder / MANIFEST_NAME).write_text(text.replace('"empty"', f'"{escaped}"'))
    refused(folder, MANIFEST_NAME, "plain path")


def test_a_graph_in_a_file_that_is_not_listed_is_refused(folder: Path):
    (folder / MANIFEST_NAME).unlink()
    seal(folder, {"step": Graph(precision="fp32", inputs=(), outputs=(), files={"onnx": "step.onnx"})})
    (folder / "step.onnx").write_bytes(b"never hashed")
    refused(folder, "step.onnx")


def test_a_huge_manifest_is_not_read(folder: Path):
    with (folder / MANIFEST_NAME).open("r+b") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    refused(folder, str(MAX_MANIFEST_BYTES))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(folder: Path):
    (folder / "encoder.onnx").chmod(0)
    with pytest.raises(EnvironmentNotFitError, match=r"encoder\.onnx.*[Pp]ermission"):
        open_artifact(folder)


@pytest.mark.parametrize("what", ["nothing", "file", "folder"])
def test_not_an_artifact(tmp_path: Path, what: str):
    path = tmp_path / "x"
    if what == "file":
        path.write_text("")
    elif what == "folder":
        path.mkdir()
    with pytest.raises(InputError, match="atlasport export"):
        open_artifact(path)


class TestFind:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for name in ("whisper-tiny/fp32", "whisper-tiny/fp16", "whisper-pocket/fp32"):
            folder = tmp_path / "artifacts" / name
            folder.mkdir(parents=True)
            (folder / MANIFEST_NAME).write_text("")
        return tmp_path / "artifacts"

    def test_lists(self, root: Path):
        found = [path.relative_to(root).as_posix() for path in artifacts_in(root)]
        assert found == ["whisper-pocket/fp32", "whisper-tiny/fp16", "whisper-tiny/fp32"]

    def test_by_name_or_path(self, root: Path):
        tiny = root / "whisper-tiny"
        assert find_artifact("whisper-tiny", root) == tiny / "fp32"
        assert find_artifact("whisper-tiny", root, "fp16") == tiny / "fp16"
        assert find_artifact("whisper-tiny/fp16", root) == tiny / "fp16"
        assert find_artifact(str(tiny), root) == tiny / "fp32"
        assert find_artifact(str(tiny / "fp16"), root) == tiny / "fp16"

    @pytest.mark.parametrize(
        ("name", "variant", "expected"),
        [
            ("whisper-tinny", "fp32", "did you mean whisper-tiny"),
            ("whisper-tiny", "bf16", "whisper-tiny/fp16"),
            ("zebra", "fp32", "atlasport export"),
            ("", "fp32", "atlasport export"),
            ("a\0b", "fp32", "atlasport export"),
            ("x" * 5000, "fp32", "atlasport export"),
        ],
    )
    def test_unknown(self, root: Path, name: str, variant: str, expected: str):
        with pytest.raises(InputError, match=expected) as caught:
            find_artifact(name, root, variant)
        assert "\n" not in str(caught.value)
        assert "whisper-pocket/fp32" in str(caught.value)

    def test_empty_root(self, tmp_path: Path):
        with pytest.raises(InputError, match=r"holds none.*atlasport export"):
            find_artifact("whisper-tiny", tmp_path / "artifacts")
