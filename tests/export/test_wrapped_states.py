"""Checkpoints as training code saves them: prefixed names, dictionaries around the tensors, other files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from granite_checkpoints import write_granite_checkpoint
from safetensors.torch import load_file, save_file
from sed_checkpoints import sed_state, write_sed_checkpoint

from export.checkpoint import is_plain, open_checkpoint
from export.families import open_model
from export.families.whisper.checkpoint import WhisperCheckpoint
from export.parity import SourceModel
from export.pipeline import WEIGHTS_NAME, write_weights
from export.weights import resolve_weights
from runtime.errors import InputError

State = dict[str, Any]


@pytest.fixture
def folder(pocket_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of whisper-pocket's checkpoint without its tensors."""
    target = tmp_path / "checkpoint"
    shutil.copytree(pocket_checkpoint, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


@pytest.fixture(scope="module")
def state(pocket_checkpoint: Path) -> State:
    return load_file(pocket_checkpoint / "model.safetensors")


def _prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def _save(name: str, change: Callable[[State], State], **options: Any) -> Callable[[State, Path], None]:
    def save(state: State, folder: Path) -> None:
        changed = change(state)
        if name.endswith(".safetensors"):
            save_file(changed, folder / name)
        else:
            torch.save(changed, folder / name, **options)

    return save


def _compiled_encoder(state: State) -> State:
    return {name.replace("model.encoder.", "model.encoder._orig_mod."): tensor for name, tensor in state.items()}


BIN = "pytorch_model.bin"
FORMS = {
    "data parallel": _save(BIN, lambda state: _prefixed(state, "module.")),
    "compiled": _save("model.safetensors", lambda state: _prefixed(state, "_orig_mod.")),
    "compiled and parallel": _save(BIN, lambda state: _prefixed(state, "module._orig_mod.")),
    "parallel and compiled": _save(BIN, lambda state: _prefixed(state, "_orig_mod.module.")),
    "compiled encoder": _save("model.safetensors", _compiled_encoder),
    "state_dict": _save(BIN, lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}}),
    "model": _save(BIN, lambda state: {"model": _prefixed(state, "module."), "step": 10}),
    "model_state_dict": _save(BIN, lambda state: {"model_state_dict": state}),
    "before torch 1.6": _save(BIN, dict, _use_new_zipfile_serialization=False),
    "before torch 1.6, wrapped": _save(BIN, lambda state: {"state_dict": state}, _use_new_zipfile_serialization=False),
    "model.pth": _save("model.pth", dict),
    "pytorch_model.pt": _save("pytorch_model.pt", dict),
    "variant": _save("model.fp32.safetensors", dict),
}
# What transformers reads, too.
PLAIN = {"before torch 1.6"}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_tensors_of_the_plain_folder(form: str, state: State, folder: Path, pocket_checkpoint: Path):
    FORMS[form](state, folder)
    plain, found = WhisperCheckpoint(pocket_checkpoint), WhisperCheckpoint(folder)
    assert dict(found.tensors).keys() == dict(plain.tensors).keys()
    for name in plain.tensors:
        assert torch.equal(found.read(name), plain.read(name)), name
    assert is_plain(folder) is (form in PLAIN)
    assert is_plain(pocket_checkpoint)
    tensors = [file.name for file in found.files if file.suffix in {".safetensors", ".bin", ".pth", ".pt"}]
    assert tensors == [path.name for path in folder.iterdir() if path.name in tensors]


def test_prefixes_in_split_files(state: State, folder: Path):
    names = sorted(state)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({f"module.{name}": state[name] for name in part}, folder / file)
    weight_map = {f"module.{name}": file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert set(open_checkpoint(folder).tensors) == set(state)


@pytest.mark.parametrize(
    ("family", "prefix"), [("cnn8rnn", "module."), ("granite_speech", "_orig_mod."), ("granite_speech", "module.")]
)
def test_other_families(family: str, prefix: str, tmp_path: Path):
    plain = tmp_path / "plain"
    if family == "cnn8rnn":
        write_sed_checkpoint(plain, sed_state())
    else:
        write_granite_checkpoint(plain)
    wrapped = Path(shutil.copytree(plain, tmp_path / "wrapped"))
    (wrapped / "model.safetensors").unlink()
    torch.save({"state_dict": _prefixed(load_file(plain / "model.safetensors"), prefix)}, wrapped / BIN)
    models = [open_model(resolve_weights("my-model", str(folder))) for folder in (plain, wrapped)]
    assert [found for found, _ in models] == [family, family]
    for name in models[0][1].tensors:
        assert torch.equal(models[0][1].read(name), models[1][1].read(name)), name
    weights = tmp_path / WEIGHTS_NAME
    write_weights(models[1][1], torch.float32, weights)
    sources = [model.source(weights) for _, model in models]
    _assert_same_networks(*sources)


def _assert_same_networks(first: SourceModel, second: SourceModel) -> None:
    """Compare the tensors of what golden outputs are compared with, where that is one network under one name."""
    for name in ("model", "network"):
        if hasattr(first, name):
            found = getattr(second, name).state_dict()
            expected = getattr(first, name).state_dict()
            assert expected.keys() == found.keys()
            # Granite's normalisations are folded in one of them.
            same = [key for key in expected if "depth_conv" not in key and "batch_norm" not in key]
            assert len(same) > len(expected) / 2
            assert all(torch.equal(expected[key], found[key]) for key in same)


def test_the_source_of_a_wrapped_whisper_has_its_weights(state: State, folder: Path, tmp_path: Path):
    FORMS["data parallel"](state, folder)
    _, model = open_model(resolve_weights("my-whisper", str(folder)))
    weights = tmp_path / WEIGHTS_NAME
    write_weights(model, torch.float32, weights)
    found: Any = model.source(weights)
    loaded = found.model.state_dict()
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor.float()), name


def _both_names(state: State, folder: Path) -> None:
    name = next(iter(state))
    save_file({**state, f"module.{name}": state[name] + 1}, folder / "model.safetensors")


def _two_networks(state: State, folder: Path) -> None:
    torch.save({"model": state, "state_dict": state}, folder / BIN)


def _two_files(state: State, folder: Path) -> None:
    torch.save(state, folder / "model.pth")
    save_file(state, folder / "model.fp16.safetensors")


def _page(_: State, folder: Path) -> None:
    (folder / BIN).write_text("<html>not found</html>")


def _nested(state: State, folder: Path) -> None:
    torch.save({"model": {"state_dict": state}}, folder / BIN)


def _itself(_: State, folder: Path) -> None:
    state: State = {}
    state["model"] = state
    torch.save(state, folder / BIN)


def _cut_legacy(state: State, folder: Path) -> None:
    torch.save(state, folder / BIN, _use_new_zipfile_serialization=False)
    data = (folder / BIN).read_bytes()
    (folder / BIN).write_bytes(data[: len(data) // 2])


class _Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("/tmp/atlasport-legacy-was-here"),))


def _legacy_code(_: State, folder: Path) -> None:
    torch.save({"a": _Payload()}, folder / BIN, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("save", "told"),
    [
        (_both_names, "which are one; give a checkpoint of one network"),
        (_two_networks, "holds state_dict and model; save the one"),
        (_two_files, "found model.fp16.safetensors, model.pth"),
        (_page, "expected a file that torch.save wrote, found another kind"),
        (_nested, "expected tensors by name, found 'state_dict': dict"),
        (_itself, "expected tensors by name, found 'model': dict"),
        (_cut_legacy, "cannot be opened as a torch checkpoint"),
        (_legacy_code, "code is refused"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    save: Callable[[State, Path], None], told: str, state: State, folder: Path
):
    save(state, folder)
    with pytest.raises(InputError) as caught:
        WhisperCheckpoint(folder)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/atlasport-legacy-was-here").exists()
