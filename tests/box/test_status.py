"""What a fleet agent reads of a box: its exit code is that of the worst thing it finds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from box_bundles import MODEL, Keys, requiring
from command_line import REPOSITORY, atlasport

from runtime.box.install import Trust, install
from runtime.box.keep import gc, remove
from runtime.box.root import Box
from runtime.box.status import box_status, installed_versions
from runtime.box.switch import activate, rollback
from runtime.bundle.signing import key_id
from runtime.errors import DamagedArtifactError, GateError, InputError

ANY = Trust(allow_unsigned=True)


@pytest.fixture
def box(tmp_path: Path, bundle: Path, newer: Path, keys: Keys) -> Box:
    """A box with 1.1.0 active, signed, and 1.0.0 before it."""
    for path in (bundle, newer):
        version = install(path, tmp_path / "box", Trust(keys.public)).manifest.version
        activate(tmp_path / "box", MODEL, version)
    return Box(tmp_path / "box")


def test_a_healthy_box(box: Box, keys: Keys) -> None:
    status = box_status(box.path)
    (model,) = status.models
    assert status.code == 0
    assert status.problems == []
    assert (model.active, model.previous, model.highest) == ("1.1.0", "1.0.0", "1.1.0")
    assert model.signature == {"key_id": key_id(keys.public), "signed": True, "trusted": True}
    assert model.self_test is not None
    assert model.self_test["verdict"] == "pass"
    assert model.waivers == ("unverified",)
    assert status.devices["fit"] is True
    assert json.loads(json.dumps(status.to_json()))["models"][0]["active"] == "1.1.0"


def test_no_box(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a box"):
        box_status(tmp_path)


def test_nothing_active_is_healthy(tmp_path: Path, bundle: Path) -> None:
    install(bundle, tmp_path, ANY)
    status = box_status(tmp_path)
    assert status.code == 0
    assert status.models[0].active is None
    assert status.models[0].signature is None
    assert status.devices == {}


def test_a_failed_self_test_of_the_active_version(box: Box, wrong: dict[str, Path]) -> None:
    """Of one that is not active it is no trouble."""
    install(wrong["gain"], box.path, ANY)
    with pytest.raises(GateError):
        activate(box.path, MODEL, "2.0.0")
    assert box_status(box.path).code == 0
    # An operator's hand: the only way to make it active.
    state = box.state()
    with box.locked():
        box.switch(state.with_model(MODEL, state.models[MODEL].model_copy(update={"active": "2.0.0"})))
    status = box_status(box.path)
    assert status.code == 1
    assert "self-test of 2.0.0: fail" in status.problems[0]


def test_a_version_that_was_never_tested(box: Box) -> None:
    box.self_test_file(MODEL, "1.1.0").unlink()
    status = box_status(box.path)
    assert status.code == 1
    assert "has no self-test" in status.problems[0]


def test_a_rollback_whose_self_test_could_not_run(box: Box) -> None:
    rollback(box.path, MODEL, device="npu:0")
    status = box_status(box.path)
    assert status.code == 3
    assert "blocked" in status.problems[0]


def test_a_machine_that_changed_under_the_box(tmp_path: Path, bundle: Path) -> None:
    box = Box(tmp_path / "box")
    install(requiring(bundle, tmp_path / "b.atlas", None, socs=("Ascend910B",)), box.path, ANY)
    activate(box.path, MODEL, "1.0.0")
    assert box_status(box.path).code == 0
    status = box_status(box.path, device="npu:0")
    assert status.code == 3
    assert any("npu:0" in problem for problem in status.problems)


@pytest.mark.parametrize("name", ["artifact/head.onnx", "atlas.json", "README.md"])
def test_a_lost_or_replaced_file(box: Box, name: str) -> None:
    path = box.version_folder(MODEL, "1.1.0") / name
    data = path.read_bytes()
    path.unlink()
    assert box_status(box.path).code == 4
    path.write_bytes(data + b" ")
    status = box_status(box.path)
    assert status.code == 4
    assert name in status.problems[0]


def test_a_flipped_bit_shows_when_all_is_read(box: Box) -> None:
    path = box.version_folder(MODEL, "1.1.0") / "artifact" / "golden.safetensors"
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert box_status(box.path).code == 0
    assert box_status(box.path, read_all=True).code == 4


def test_gc_frees_what_no_version_uses(box: Box, wrong: dict[str, Path]) -> None:
    before = {path.name for path in box.blobs.iterdir()}
    install(wrong["event"], box.path, ANY)
    added = {path.name: path.stat().st_size for path in box.blobs.iterdir() if path.name not in before}
    assert added
    assert gc(box.path).blobs == 0
    remove(box.path, MODEL, "2.0.0")
    collected = gc(box.path)
    assert (collected.blobs, collected.freed_bytes) == (len(added), sum(added.values()))
    assert {path.name for path in box.blobs.iterdir()} == before
    assert box_status(box.path, read_all=True).code == 0


def test_gc_removes_nothing_where_it_cannot_know_what_is_used(box: Box) -> None:
    (box.version_folder(MODEL, "1.0.0") / "atlas.json").unlink()
    before = {path.name for path in box.blobs.iterdir()}
    with pytest.raises(DamagedArtifactError, match=r"atlas\.json"):
        gc(box.path)
    assert {path.name for path in box.blobs.iterdir()} == before
    remove(box.path, MODEL, "1.0.0")
    gc(box.path)


def test_the_active_version_stays(box: Box) -> None:
    with pytest.raises(InputError, match="the active one"):
        remove(box.path, MODEL, "1.1.0")
    assert [(version.version, version.use) for _, version in installed_versions(box.path)] == [
        ("1.0.0", "previous"),
        ("1.1.0", "active"),
    ]


def test_the_commands_from_stick_to_rollback(
    tmp_path: Path, bundle: Path, newer: Path, keys: Keys, wrong: dict[str, Path]
) -> None:
    root, key = ("--root", tmp_path / "box"), ("--public-key", keys.public)
    installed = atlasport("install", bundle, *root, *key, "--activate")
    assert installed.returncode == 0, installed.stderr
    assert "MB written" in installed.stdout
    assert "self-test: pass, onnxruntime on cpu" in installed.stdout
    assert atlasport("install", newer, *root, *key, "--activate").returncode == 0
    failed = atlasport("install", wrong["gain"], *root, *key, "--activate")
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "1.1.0 stays active" in failed.stderr
    run = atlasport("run", MODEL, REPOSITORY / "samples" / "sed_1.flac", *root, "--json")
    assert [event["label"] for event in json.loads(run.stdout)["events"]][1] == "Siren"
    assert json.loads(run.stdout)["device"] == "cpu"
    back = atlasport("rollback", MODEL, *root)
    assert back.returncode == 0
    assert "1.0.0 is active (before: 1.1.0)" in back.stdout
    told = atlasport("status", *root, "--json")
    assert told.returncode == 0
    assert json.loads(told.stdout)["models"][0]["active"] == "1.0.0"
    listed = [json.loads(line) for line in atlasport("list", *root, "--json").stdout.splitlines()]
    assert [(row["version"], row["use"]) for row in listed] == [("1.0.0", "active"), ("1.1.0", ""), ("2.0.0", "")]
    assert atlasport("remove", MODEL, "2.0.0", *root).returncode == 0
    assert "removed " in atlasport("gc", *root).stdout
    blind = atlasport("rollback", MODEL, *root)
    assert blind.returncode == 2
    assert "previous version, found none" in blind.stderr
    assert atlasport("run", "sed-poket", REPOSITORY / "samples" / "sed_1.flac", *root).returncode == 2
