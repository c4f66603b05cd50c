"""Folders and files that are no checkpoint, or one of a kind that export does not read: each is told by name."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export.families import checkpoints, open_model
from export.registry import REPOSITORY_ROOT
from export.weights import family_of, resolve_weights
from runtime.errors import ExitCode, InputError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 151061672\n"
CONFIG = {"model_type": "whisper", "_name_or_path": "openai/whisper-tiny"}
MLX_CONFIG = {"n_mels": 80, "n_audio_ctx": 1500, "n_text_ctx": 448, "n_vocab": 51865, "model_type": "whisper"}
POCKET_NEMO = REPOSITORY_ROOT / "pocket" / "parakeet-pocket.nemo"


def _told(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        resolve_weights("my-model", str(path))
    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert "\n" not in message
    return message


def _write(folder: Path, files: dict[str, bytes | dict[str, object]]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("ggml-base.en.bin", "a ggml file"),
        ("whisper-base-q5_0.gguf", "a GGUF file"),
        ("weights.npz", "a checkpoint for MLX"),
        ("weights.safetensors", "a checkpoint for MLX"),
        ("flax_model.msgpack", "a checkpoint of Flax"),
        ("tf_model.h5", "a checkpoint of TensorFlow"),
        ("saved_model.pb", "a saved model of TensorFlow"),
        ("encoder_model.onnx", "an ONNX model"),
        ("onnx/decoder_model_merged.onnx", "an ONNX model"),
        ("openvino_encoder_model.xml", "a model for OpenVINO"),
        ("AudioEncoder.mlmodelc/model.mil", "a model for Core ML"),
        ("epoch=3-step=1000.ckpt", "a checkpoint of Lightning"),
    ],
)
def test_a_folder_of_another_format_is_told_by_its_files(tmp_path: Path, name: str, what: str):
    folder = _write(tmp_path / "model", {"config.json": CONFIG, name: b"data"})
    message = _told(folder)
    assert message.startswith(f"{folder}: is {what}")
    assert "; give the " in message
    # With tensors that export reads it is a checkpoint all the same.
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    assert resolve_weights("my-model", str(folder)).path == folder


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("ggml-tiny.bin", b"lmgg\x00\x00", "a ggml file"),
        ("renamed.pt", b"lmgg\x00\x00", "a ggml file"),
        ("tiny.gguf", b"GGUF\x03", "a GGUF file"),
        ("weights.npz", b"PK", "a checkpoint for MLX"),
        ("model.onnx", b"\x08\x08", "an ONNX model"),
        ("last.ckpt", b"PK", "a checkpoint of Lightning"),
    ],
)
def test_a_file_of_another_format_is_told(tmp_path: Path, name: str, content: bytes, what: str):
    _write(tmp_path, {name: content})
    assert _told(tmp_path / name).startswith(f"{tmp_path / name}: is {what}")


def test_tensors_that_mlx_wrote_are_told_by_config_or_metadata(tmp_path: Path):
    first = _write(tmp_path / "config", {"config.json": MLX_CONFIG})
    save_file({"a": torch.zeros(1)}, first / "model.safetensors")
    second = _write(tmp_path / "metadata", {"config.json": CONFIG})
    save_file({"a": torch.zeros(1)}, second / "model.safetensors", metadata={"format": "mlx"})
    third = _write(tmp_path / "nemo", {"config.json": {"target": "nemo.collections.asr.models.EncDecRNNTBPEModel"}})
    save_file({"a": torch.zeros(1)}, third / "model.safetensors")
    for folder in (first, second, third):
        assert _told(folder).startswith(f"{folder}: is a checkpoint for MLX; give the checkpoint that it was made of")


def test_quantized_tensors_are_told_by_config_or_their_names(tmp_path: Path):
    config = {**CONFIG, "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    first = _write(tmp_path / "config", {"config.json": config, "model.safetensors": b""})
    assert _told(first) == (
        f"{first}: is quantized (bitsandbytes); give the checkpoint that was quantized, such as openai/whisper-tiny"
    )
    second = _write(tmp_path / "names", {"config.json": CONFIG})
    save_file(
        {"fc.weight": torch.zeros(2, 2, dtype=torch.int8), "fc.SCB": torch.zeros(2)}, second / "model.safetensors"
    )
    assert _told(second) == f"{second}: is quantized (bitsandbytes); give the checkpoint that was quantized"


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "tokenizer.json", "x.nemo", "model.bin"],
)
def test_a_pointer_of_git_lfs_is_told(tmp_path: Path, name: str):
    files: dict[str, bytes | dict[str, object]] = {"config.json": CONFIG, "vocabulary.txt": b"a", name: POINTER}
    folder = _write(tmp_path / "clone", files)
    assert _told(folder) == (
        f"{folder / name}: is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"
    )


def test_a_pointer_among_the_parts_is_told(tmp_path: Path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    folder = _write(tmp_path, {"config.json": CONFIG, "model.safetensors.index.json": index})
    save_file({"a": torch.zeros(1)}, folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(POINTER)
    assert "model-00002-of-00002.safetensors: is a Git LFS pointer" in _told(folder)


def test_a_single_file_may_be_a_pointer(tmp_path: Path):
    for name in ("x.nemo", "tiny.pt"):
        _write(tmp_path, {name: POINTER})
        assert f"{tmp_path / name}: is a Git LFS pointer" in _told(tmp_path / name)


def test_a_pointer_that_is_not_read_does_not_matter(tmp_path: Path):
    folder = _write(tmp_path, {"config.json": CONFIG, "pytorch_model.bin": POINTER, "training_args.bin": POINTER})
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    assert resolve_weights("my-model", str(folder)).path == folder


def test_a_folder_of_the_hub_s_cache_is_told_which_snapshot_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "hub" / "models--openai--whisper-tiny"
    new, old = root / "snapshots" / ("1" * 40), root / "snapshots" / ("2" * 40)
    for age, folder in ((0, new), (100, old)):
        _write(folder, {"config.json": CONFIG})
        os.utime(folder, (1000 - age, 1000 - age))
    for folder in (root, root / "snapshots"):
        assert _told(folder) == f"{folder}: is a folder of the hub's cache, not a checkpoint; give {new}"
    _write(root, {"refs/main": b"2" * 40})
    assert _told(root).endswith(f"give {old}")
    for folder in (tmp_path, tmp_path / "hub"):
        assert _told(folder).endswith(f"is the hub's cache, not a checkpoint; give a snapshot in it, such as {old}")
    assert resolve_weights("my-model", str(old)).path == old
    monkeypatch.chdir(root)
    assert _told(Path()).endswith(f"give {old}")
    shutil.rmtree(root / "snapshots")
    assert "without a snapshot" in _told(root)


def test_a_trainer_s_output_folder_is_told_which_checkpoint_to_give(tmp_path: Path):
    folder = _write(
        tmp_path / "out",
        {
            "preprocessor_config.json": b"{}",
            "checkpoint-500/config.json": CONFIG,
            "checkpoint-1000/trainer_state.json": {"best_model_checkpoint": "./elsewhere/checkpoint-500"},
            "runs/events": b"",
        },
    )
    newest, best = folder / "checkpoint-1000", folder / "checkpoint-500"
    assert _told(folder) == (
        f"{folder}: is the output folder of a Trainer; give {newest}, the newest, or {best}, the best"
    )
    for state in (b'{"best_model_checkpoint": null}', b"{", b'{"best_model_checkpoint": "checkpoint-1"}'):
        _write(newest, {"trainer_state.json": state})
        assert _told(folder).endswith(f"give {newest}, the newest")
    # The model that was saved at the end counts.
    _write(folder, {"config.json": CONFIG})
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    assert resolve_weights("my-model", str(folder)).path == folder


def test_an_unpacked_nemo_is_told_how_to_pack_it_and_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "my parakeet-0.6b"
    with tarfile.open(POCKET_NEMO) as archive:
        archive.extractall(folder, filter="data")
    message = _told(folder)
    assert message.startswith(f"{folder}: is an unpacked .nemo; pack it (tar ")
    command, _, name = message.partition("(")[2].partition(") and give ")
    assert name == "my parakeet-0.6b.nemo"
    monkeypatch.chdir(tmp_path)
    subprocess.run(shlex.split(command), check=True)
    family, model = open_model(resolve_weights("my-parakeet", name))
    assert family == "parakeet_tdt"
    assert model.dims == open_model(resolve_weights("parakeet-pocket", None))[1].dims


def test_a_nemo_beside_tensors_is_refused(tmp_path: Path):
    folder = _write(tmp_path, {"config.json": CONFIG, "x.nemo": b"nemo"})
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    assert _told(folder) == (
        f"{folder}: holds x.nemo and model.safetensors; give {folder / 'x.nemo'}, or the folder without it"
    )
    assert resolve_weights("my-model", str(folder / "x.nemo")).path == folder / "x.nemo"


def test_an_artifact_is_no_checkpoint(tmp_path: Path):
    folder = _write(tmp_path, {"manifest.json": b"{}", "weights.safetensors": b"", "encoder.onnx": b""})
    assert "is an artifact that export wrote" in _told(folder)


def test_a_folder_with_one_pt_file_is_told_to_give_that(tmp_path: Path):
    _write(tmp_path, {"tiny.en.pt": b"PK"})
    assert _told(tmp_path).endswith("found tiny.en.pt; give that file")


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    tmp_path.chmod(0)
    assert "cannot be read" in _told(tmp_path)


def _openai_file(folder: Path) -> Path:
    torch.save({"dims": {}, "model_state_dict": {}}, folder / "tiny.en.pt")
    return folder / "tiny.en.pt"


def _ctranslate2_folder(folder: Path) -> Path:
    return _write(folder, {"config.json": {"alignment_heads": []}, "model.bin": b"", "vocabulary.txt": b"a"})


@pytest.mark.parametrize("made", [_openai_file, _ctranslate2_folder])
def test_openai_s_file_and_a_folder_of_ctranslate2_are_of_a_family(tmp_path: Path, made: Callable[[Path], Path]):
    path = made(tmp_path)
    found = resolve_weights("my-whisper", str(path))
    assert found.path == path
    assert family_of(found, checkpoints()) == "whisper"
    other = resolve_weights("parakeet-tdt-0.6b-v2", str(path))
    with pytest.raises(InputError, match="expected a checkpoint of parakeet_tdt, found a "):
        family_of(other, checkpoints())


def test_a_folder_with_a_model_type_is_not_taken_for_ctranslate2_s(tmp_path: Path):
    folder = _write(tmp_path, {"config.json": {"model_type": "nllb"}, "model.bin": b"", "vocabulary.txt": b"a"})
    with pytest.raises(InputError, match='found model_type "nllb"'):
        family_of(resolve_weights("my-model", str(folder)), checkpoints())


def test_damaged_headers_are_left_to_their_reader(tmp_path: Path):
    folder = _write(tmp_path, {"config.json": CONFIG})
    for content in (b"", b"\xff" * 100, np.int64(1 << 62).tobytes() + b"{", (2).to_bytes(8, "little") + b"[]"):
        (folder / "model.safetensors").write_bytes(content)
        assert resolve_weights("my-model", str(folder)).path == folder
