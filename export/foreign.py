"""Tells what a folder or file is that export does not read, and what to give in its place."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from export.checkpoint import CHECKPOINT_LAYOUTS, shard_names
from export.files import (
    ADAPTERS,
    CONFIG,
    CTRANSLATE2_VOCABULARIES,
    FILE_SUFFIXES,
    INDEXES,
    NEMO_SUFFIX,
    SIDE_FILES,
    TORCH_SUFFIX,
    layout_of,
    nemo_files,
)
from export.json_files import read_json
from runtime.errors import InputError


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint: what it is, and what to give in its place."""

    what: str
    advice: str


_ORIGINAL = (
    "give the checkpoint that it was made of, with model.safetensors, pytorch_model.bin or as a .nemo or .pt file"
)
_LIGHTNING = "give the .nemo that NeMo saves at the end (model.save_to), or the folder of model.save_pretrained"
_GGML = Kind("a ggml file (whisper.cpp)", _ORIGINAL)
_GGUF = Kind("a GGUF file (llama.cpp, whisper.cpp)", _ORIGINAL)
_MLX = Kind("a checkpoint for MLX", _ORIGINAL)
# By the names of files, where there are no tensors that export reads. The first that matches counts.
_KINDS = (
    ("*.gguf", _GGUF),
    ("*ggml*.bin", _GGML),
    ("weights.npz", _MLX),
    ("weights.safetensors", _MLX),
    (
        "*flax_model*.msgpack",
        Kind("a checkpoint of Flax", f"{_ORIGINAL}; transformers 4 converts it (from_flax=True, then save_pretrained)"),
    ),
    (
        "*tf_model*.h5",
        Kind(
            "a checkpoint of TensorFlow",
            f"{_ORIGINAL}; transformers 4 converts it (from_tf=True, then save_pretrained)",
        ),
    ),
    ("*saved_model.pb", Kind("a saved model of TensorFlow", _ORIGINAL)),
    ("*openvino_*.xml", Kind("a model for OpenVINO", _ORIGINAL)),
    ("*.mlmodelc*", Kind("a model for Core ML", _ORIGINAL)),
    ("*.mlpackage*", Kind("a model for Core ML", _ORIGINAL)),
    ("*.onnx", Kind("an ONNX model", _ORIGINAL)),
    ("*.ckpt", Kind("a checkpoint of Lightning", _LIGHTNING)),
)
_MAGIC = {b"lmgg": _GGML, b"GGUF": _GGUF}
_POINTER = b"version https://git-lfs.github.com/spec/v1"
_POINTER_SIZE = 1024
# The header of a safetensors file is a few hundred bytes a tensor.
_HEADER_SIZE = 1 << 26
# What bitsandbytes stores beside a tensor of 8 or 4 bits.
_QUANTIZED = re.compile(r"\.(SCB|quant_state\.\w+|absmax)$")
_STEP = re.compile(r"checkpoint-(\d+)")
# The dims of openai-whisper's Python class, which MLX writes into config.json in place of transformers' settings.
_MLX_DIMS = {"n_mels", "n_audio_ctx", "n_text_ctx"}


def kind_of(names: Iterable[str]) -> Kind | None:
    """Return what files of these names are, None if export does not know it."""
    found = list(names)
    return next((kind for pattern, kind in _KINDS if any(fnmatch(name, pattern) for name in found)), None)


def check_readable(path: Path) -> None:
    """Refuse a folder or file that is no checkpoint, or one of a kind that export does not read.

    Raises
    ------
    InputError
        One line with what it is and what to give in its place.

    """
    try:
        if path.is_file():
            _check_file(path)
        else:
            _check_folder(path)
    except OSError as error:
        raise InputError(
            f"{error.filename or path}: cannot be read ({error.strerror}); check its permissions"
        ) from error


def check_unambiguous(folder: Path) -> None:
    """Refuse a folder that holds two checkpoints: a .nemo beside tensors."""
    layout, nemo = layout_of(folder), nemo_files(folder)
    if layout is not None and nemo:
        raise InputError(f"{folder}: holds {nemo[0].name} and {layout}; give {nemo[0]}, or the folder without it")


def _refuse(path: Path, kind: Kind | None) -> None:
    if kind is not None:
        raise InputError(f"{path}: is {kind.what}; {kind.advice}")


def _check_file(path: Path) -> None:
    _check_pointer(path)
    with path.open("rb") as file:
        magic = file.read(4)
    _refuse(path, _MAGIC.get(magic))
    if path.suffix not in FILE_SUFFIXES:
        _refuse(path, kind_of([path.name]))
        raise InputError(
            f"{path}: expected a checkpoint's folder, a .nemo or a .pt file, found a file; give its folder"
        )


def _check_folder(folder: Path) -> None:
    _check_hub_cache(folder)
    layout = layout_of(folder)
    for path in _read_files(folder, layout):
        _check_pointer(path)
    if layout is None and not nemo_files(folder) and not any((folder / name).is_file() for name in ADAPTERS):
        _check_without_tensors(folder)
    if (folder / CONFIG).is_file():
        _check_config(folder / CONFIG)
    tensors = folder / CHECKPOINT_LAYOUTS[0]
    if tensors.is_file():
        _check_header(tensors)


def _read_files(folder: Path, layout: str | None) -> list[Path]:
    """Return the files of a folder that export reads, of those that are there."""
    names = [*SIDE_FILES, *ADAPTERS, *CTRANSLATE2_VOCABULARIES, *([layout] if layout else [])]
    if layout in INDEXES and not _is_pointer(folder / layout):
        names += shard_names(folder / layout)
    return [path for path in (*(folder / name for name in names), *nemo_files(folder)) if path.is_file()]


def _is_pointer(path: Path) -> bool:
    if path.stat().st_size > _POINTER_SIZE:
        return False
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _check_pointer(path: Path) -> None:
    if _is_pointer(path):
        raise InputError(f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")


def _check_without_tensors(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    steps = sorted((int(match[1]), name) for name in names if (match := _STEP.fullmatch(name)))
    if steps:
        newest = folder / steps[-1][1]
        raise InputError(f"{folder}: is the output folder of a Trainer; give {newest}, the newest{_best(newest)}")
    if {"model_config.yaml", "model_weights.ckpt"} <= set(names):
        packed = f"{folder.resolve().name}{NEMO_SUFFIX}"
        command = shlex.join(["tar", "-C", str(folder), "-cf", packed, "."])
        raise InputError(f"{folder}: is an unpacked {NEMO_SUFFIX}; pack it ({command}) and give {packed}")
    if {"manifest.json", "weights.safetensors"} <= set(names):
        _refuse(folder, Kind("an artifact that export wrote", _ORIGINAL))
    torch_files = [name for name in names if name.endswith(TORCH_SUFFIX)]
    if len(torch_files) == 1 and CONFIG not in names:
        raise InputError(f"{folder}: expected a checkpoint's folder, found {torch_files[0]}; give that file")
    below = [f"{path.parent.name}/{path.name}" for path in folder.glob("*/*.onnx")]
    _refuse(folder, kind_of([*names, *below]))


def _best(newest: Path) -> str:
    """Return a hint at the checkpoint that a Trainer found the best, empty if it names none that is there."""
    try:
        named = read_json(newest / "trainer_state.json").get("best_model_checkpoint")
    except InputError:
        return ""
    best = newest.parent / Path(named).name if isinstance(named, str) and named else newest
    return f", or {best}, the best" if best != newest and best.is_dir() else ""


def _check_config(path: Path) -> None:
    config = read_json(path)
    quantized = config.get("quantization_config")
    if isinstance(quantized, dict) and quantized:
        method = quantized.get("quant_method") or "bitsandbytes"
        _refuse(path.parent, Kind(f"quantized ({method})", f"give the checkpoint that was quantized{_source(config)}"))
    target = config.get("target")
    if config.keys() >= _MLX_DIMS or (isinstance(target, str) and target.startswith("nemo.")):
        _refuse(path.parent, _MLX)


def _source(config: dict[str, Any]) -> str:
    name = config.get("_name_or_path")
    return f", such as {name}" if isinstance(name, str) and name and "\n" not in name else ""


def _check_header(path: Path) -> None:
    """Refuse tensors that MLX or bitsandbytes wrote. What is no safetensors file, its reader refuses."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, _HEADER_SIZE)))
        except (ValueError, RecursionError):
            return
    if not isinstance(header, dict):
        return
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict) and metadata.get("format") == "mlx":
        _refuse(path.parent, _MLX)
    if any(_QUANTIZED.search(name) for name in header):
        _refuse(path.parent, Kind("quantized (bitsandbytes)", "give the checkpoint that was quantized"))


def _check_hub_cache(folder: Path) -> None:
    """Refuse a folder of the hub's cache that is not a snapshot, with the snapshot to give."""
    root = folder.resolve()
    root = root.parent if root.name == "snapshots" else root
    if root.name.startswith("models--"):
        snapshot = _snapshot(root)
        if snapshot is not None:
            raise InputError(f"{folder}: is a folder of the hub's cache, not a checkpoint; give {snapshot}")
        raise InputError(f"{folder}: is a folder of the hub's cache without a snapshot; give the hub id to fetch it")
    repositories = sorted((*folder.glob("models--*"), *folder.glob("hub/models--*")))
    if repositories:
        found = next((snapshot for path in repositories if (snapshot := _snapshot(path))), repositories[0])
        raise InputError(f"{folder}: is the hub's cache, not a checkpoint; give a snapshot in it, such as {found}")


def _snapshot(root: Path) -> Path | None:
    """Return the snapshot of a repository's main branch, otherwise the newest; None if there is none."""
    main = root / "refs" / "main"
    if main.is_file():
        commit = Path(main.read_text(encoding="utf-8", errors="replace").strip()).name
        if commit and (root / "snapshots" / commit).is_dir():
            return root / "snapshots" / commit
    found = [path for path in root.glob("snapshots/*") if path.is_dir()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
