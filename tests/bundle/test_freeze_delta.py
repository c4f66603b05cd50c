from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from frozen_bundles import ALL, blobs_of, edited, open_manifest, unpacked
from safetensors.numpy import load_file, save_file
from toy_bundle import entry, toy_bundle

from export.freeze.pipeline import SigningKey, freeze_artifact
from runtime.artifact import open_artifact
from runtime.box.install import Trust, install
from runtime.errors import EnvironmentNotFitError, InputError
from runtime.manifest import MANIFEST_NAME, Manifest

# --- deltas -----------------------------------------------------------------------------------------------------------


def with_other_weights(folder: Path, name: str) -> Path:
    """Change one tensor in the shared file of weights, as a retrained decoder would."""
    path = folder / "weights.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name] + np.float32(1e-3)
    save_file(tensors, path)
    artifact = open_manifest(folder)
    data = path.read_bytes()
    files = artifact.content.files | {"weights.safetensors": entry(data)}
    content = artifact.content.model_copy(update={"files": files})
    changed = Manifest.create(content, artifact.export)
    (folder / MANIFEST_NAME).write_bytes(changed.to_bytes())
    edited(folder, content_sha256=changed.content_sha256)
    return folder


def test_a_delta_sends_changed_tensors_only(verified: Path, folder: Path, tmp_path: Path, keys: tuple[Path, Path]):
    old = freeze_artifact(verified, "cpu", "1.0.0", out=tmp_path)
    with_other_weights(folder, "fc_audioset.weight")
    key = SigningKey(keys[0])
    whole = freeze_artifact(folder, "cpu", "1.1.0", out=tmp_path / "whole.atlas")
    delta = freeze_artifact(folder, "cpu", "1.1.0", out=tmp_path / "delta.atlas", base=old.path, key=key)
    assert delta.manifest.base is not None
    assert delta.manifest.base.version == "1.0.0"
    assert list(delta.manifest.base.patches) == [delta.manifest.files["artifact/weights.safetensors"].sha256]
    assert delta.saved_bytes == sum(whole.manifest.members.values()) - sum(delta.manifest.members.values())
    # The layers that have not changed are 380 kB of 390 kB.
    assert next(iter(delta.manifest.base.patches.values())).size < 20_000
    assert delta.size < whole.size / 10
    blobs = blobs_of(old.path, tmp_path / "blobs")
    unpacked(delta.path, tmp_path / "one", blobs)
    unpacked(whole.path, tmp_path / "two")
    for path in (tmp_path / "two").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "one" / path.relative_to(tmp_path / "two")).read_bytes()
    open_artifact(tmp_path / "one" / "artifact")


def test_a_box_puts_a_delta_together(verified: Path, folder: Path, tmp_path: Path, keys: tuple[Path, Path]):
    """Installed from a delta or from the whole bundle, a version has the same files."""
    key, trust, root = SigningKey(keys[0]), Trust(public_key=keys[1]), tmp_path / "box"
    old = freeze_artifact(verified, "cpu", "1.0.0", out=tmp_path, key=key)
    with_other_weights(folder, "fc_audioset.weight")
    whole = freeze_artifact(folder, "cpu", "1.1.0", out=tmp_path / "whole.atlas", key=key)
    delta = freeze_artifact(folder, "cpu", "1.1.0", out=tmp_path / "delta.atlas", key=key, base=old.path)
    install(old.path, root, trust)
    install(delta.path, root, trust)
    unpacked(whole.path, tmp_path / "expected")
    expected = {path.relative_to(tmp_path / "expected"): path for path in (tmp_path / "expected").rglob("*")}
    assert len(expected) > 10
    for name, path in expected.items():
        if path.is_file():
            assert (root / "models" / "sed-pocket" / "1.1.0" / name).read_bytes() == path.read_bytes()
    with pytest.raises(EnvironmentNotFitError, match=r"delta of 1\.0\.0"):
        install(delta.path, tmp_path / "empty", trust)


def test_a_delta_of_a_delta(verified: Path, folder: Path, tmp_path: Path):
    first = freeze_artifact(verified, "cpu", "1.0.0", out=tmp_path)
    with_other_weights(folder, "fc_audioset.weight")
    second = freeze_artifact(folder, "cpu", "1.1.0", out=tmp_path, base=first.path)
    third = freeze_artifact(folder, "cpu", "1.2.0", out=tmp_path, base=second.path)
    blobs = blobs_of(first.path, tmp_path / "blobs")
    blobs_of(second.path, blobs)
    unpacked(third.path, tmp_path / "box", blobs)
    open_artifact(tmp_path / "box" / "artifact")
    assert third.size < 100_000


def test_torchscript_is_compared_record_by_record(folder: Path, tmp_path: Path):
    """Encoder and decoder in one file; only the decoder changes, and the file's other records move."""
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 256))

    def save(decoder: torch.nn.Module, name: str) -> bytes:
        model[1] = decoder
        traced = torch.jit.trace(model, torch.zeros(1, 512))
        torch.jit.save(traced, str(folder / "model.ts"), {"name": name})
        manifest = open_manifest(folder)
        data = (folder / "model.ts").read_bytes()
        content = manifest.content.model_copy(update={"files": manifest.content.files | {"model.ts": entry(data)}})
        (folder / MANIFEST_NAME).write_bytes(Manifest.create(content, manifest.export).to_bytes())
        return data

    save(model[1], "old")
    old = freeze_artifact(folder, "npu", "1.0.0", out=tmp_path, allowed=ALL)
    data = save(torch.nn.Linear(512, 256), "new, and longer by far" * 100)
    new = freeze_artifact(folder, "npu", "1.0.1", out=tmp_path, allowed=ALL, base=old.path)
    assert new.manifest.base is not None
    (patch,) = new.manifest.base.patches.values()
    assert 4 * 512 * 256 <= patch.size < 4 * 512 * 256 + 50_000
    unpacked(new.path, tmp_path / "box", blobs_of(old.path, tmp_path / "blobs"))
    assert (tmp_path / "box" / "artifact" / "model.ts").read_bytes() == data


def test_bases_that_do_not_fit(verified: Path, tmp_path: Path):
    other = toy_bundle(tmp_path / "toy.atlas")
    same = freeze_artifact(verified, "cpu", "1.0.10", out=tmp_path)
    with pytest.raises(InputError, match="found one of toy"):
        freeze_artifact(verified, "cpu", "2.0.0", out=tmp_path / "x.atlas", base=other)
    for version in ("1.0.10", "1.0.9"):
        with pytest.raises(InputError, match=r"found 1\.0\.10"):
            freeze_artifact(verified, "cpu", version, out=tmp_path / "x.atlas", base=same.path)
    assert not (tmp_path / "x.atlas").exists()
