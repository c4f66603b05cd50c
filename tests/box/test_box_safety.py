"""What a box must not do to files that are not its own, and what a damaged disk must not do to a box."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from box_bundles import MODEL, Keys, changed, refused, tree

from runtime.box.install import Trust, install
from runtime.box.keep import gc, remove
from runtime.box.root import MARKER_NAME, Box
from runtime.box.state import BoxState
from runtime.box.status import box_status
from runtime.box.switch import activate, rollback
from runtime.box.versions import open_version
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, InputError

REPOSITORY = Path(__file__).resolve().parents[2]
ANY = Trust(allow_unsigned=True)
STATES = ("state.json", "state.json.copy")


def everything(folder: Path) -> Mapping[str, bytes | None]:
    """What lies in a folder, links not followed; None for what is no file."""
    paths = (Path(top) / name for top, folders, files in os.walk(folder) for name in (*folders, *files))
    return {str(p.relative_to(folder)): p.read_bytes() if stat.S_ISREG(p.lstat().st_mode) else None for p in paths}


def commands(box: Box, bundle: Path) -> list[Callable[[], object]]:
    """Every command that changes a box."""
    return [
        lambda: install(bundle, box.path, ANY),
        lambda: activate(box.path, MODEL, "1.1.0"),
        lambda: rollback(box.path, MODEL),
        lambda: remove(box.path, MODEL, "1.0.0"),
        lambda: gc(box.path),
    ]


class TestFoldersOfOthers:
    @pytest.mark.parametrize("name", ["models", "staging", "blobs", "self-tests", "lock", "state.json"])
    def test_a_folder_that_is_no_box_is_refused_untouched(self, tmp_path: Path, bundle: Path, name: str) -> None:
        """Its names are those of a box; so may be the names of anybody's files."""
        root = tmp_path / "home"
        if name in {"lock", "state.json"}:
            root.mkdir()
            (root / name).write_text('{"my": "state"}')
        else:
            (root / name / "resnet" / "1.0.0").mkdir(parents=True)
            (root / name / "resnet" / "1.0.0" / "thesis.txt").write_text("years of work")
            (root / name / ("0" * 64)).write_text("mine")
        before = everything(tmp_path)
        for act in commands(Box(root), bundle):
            refused(act, InputError, str(root), "expected a box")
        assert everything(tmp_path) == before

    @pytest.mark.parametrize("name", ["models", "staging", "blobs", "self-tests", "lock", "state.json"])
    def test_a_part_of_a_box_that_is_a_link_is_refused(self, tmp_path: Path, box: Box, bundle: Path, name: str) -> None:
        other = tmp_path / "other"
        (other / "resnet" / "1.0.0").mkdir(parents=True)
        (other / "resnet" / "1.0.0" / "thesis.txt").write_text("years of work")
        (other / ("0" * 64)).write_text("mine")
        part = box.path / name
        if name in {"lock", "state.json"}:
            part.rename(other / name) if part.exists() else (other / name).write_text("mine")
            part.symlink_to(other / name)
        else:
            if part.exists():
                shutil.rmtree(part)
            part.symlink_to(other)
        before = everything(tmp_path)
        for act in commands(box, bundle):
            refused(act, EnvironmentNotFitError, name, "link")
        assert everything(tmp_path) == before

    def test_a_model_that_is_a_link_is_refused(self, tmp_path: Path, box: Box, bundle: Path) -> None:
        (tmp_path / "other" / "1.0.0").mkdir(parents=True)
        (tmp_path / "other" / "1.0.0" / "thesis.txt").write_text("years of work")
        (box.models / "resnet").symlink_to(tmp_path / "other")
        before = everything(tmp_path)
        for act in commands(box, bundle):
            refused(act, EnvironmentNotFitError, "resnet", "link")
        assert everything(tmp_path) == before

    def test_what_no_state_and_no_manifest_names_stays(self, box: Box, newer: Path, tmp_path: Path) -> None:
        """Notes in every folder of a box, through every command."""
        for folder in (box.path, box.blobs, box.models, box.models / MODEL, box.self_tests, box.self_tests / MODEL):
            (folder / "notes.txt").write_text("mine")
        box.staging.mkdir()
        (box.staging / "notes.txt").write_text("mine")
        newest = changed(newer, tmp_path / "newest.atlas", None, version="1.2.0")
        install(newest, box.path, ANY)
        remove(box.path, MODEL, "1.2.0")
        rollback(box.path, MODEL, test=False)
        gc(box.path)
        assert len(list(box.path.rglob("notes.txt"))) == 7

    def test_a_version_without_a_list_is_not_removed(self, box: Box, newer: Path) -> None:
        """An old state.json was put back: the newer version stays where it is, with all its blobs."""
        remove(box.path, MODEL, "1.0.0")
        old = {name: (box.path / name).read_bytes() for name in STATES}
        newest = changed(newer, box.path.parent / "newest.atlas", None, version="1.2.0", waivers=())
        install(newest, box.path, ANY)
        for name, data in old.items():
            (box.path / name).write_bytes(data)
        before = tree(box.path)
        refused(lambda: gc(box.path), DamagedArtifactError, "1.2.0", "nothing is removed")
        assert tree(box.path) == before
        status = box_status(box.path)
        assert status.code == 4
        assert "1.2.0" in status.problems[0]
        # The bundle, installed again, is what the message says.
        install(newest, box.path, ANY)
        gc(box.path)
        assert box_status(box.path, read_all=True).code == 0

    def test_a_lost_state_is_not_an_empty_box(self, box: Box, bundle: Path) -> None:
        for name in STATES:
            (box.path / name).unlink()
        before = tree(box.path)
        refused(lambda: install(bundle, box.path, ANY), DamagedArtifactError, "state.json")
        assert tree(box.path) == before

    def test_umask_077_keeps_nobody_out(self, tmp_path: Path, bundle: Path) -> None:
        before = os.umask(0o077)
        try:
            install(bundle, tmp_path / "box", ANY)
            activate(tmp_path / "box", MODEL, "1.0.0")
            assert os.umask(0o077) == 0o077
        finally:
            os.umask(before)
        for path in (tmp_path / "box", *(tmp_path / "box").rglob("*")):
            wanted = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
            assert path.name == "lock" or path.stat().st_mode & wanted == wanted, path

    def test_a_folder_that_may_not_be_entered_is_not_taken_for_none(self, tmp_path: Path, box: Box) -> None:
        if os.geteuid():
            pytest.skip("only root can become another user")
        tmp_path.chmod(0o755)
        box.path.chmod(0o700)
        os.seteuid(65534)
        try:
            for act in (box.exists, lambda: box_status(box.path)):
                with pytest.raises((EnvironmentNotFitError, PermissionError)):
                    act()
        finally:
            os.seteuid(0)


class TestState:
    def test_every_flipped_bit_shows(self, box: Box) -> None:
        data = (box.path / "state.json").read_bytes()
        assert BoxState.from_bytes(data, "x").to_bytes() == data
        for at in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[at // 8] ^= 1 << at % 8
            with pytest.raises(DamagedArtifactError, match=r"^x: "):
                BoxState.from_bytes(bytes(flipped), "x")
        for length in range(len(data)):
            with pytest.raises(DamagedArtifactError):
                BoxState.from_bytes(data[:length], "x")

    @pytest.mark.parametrize("name", STATES)
    def test_one_damaged_file_of_two_costs_nothing(self, box: Box, name: str, bundle: Path) -> None:
        """Every byte of it, and the whole file: nothing is removed, no downgrade gets in, and it is repaired."""
        path = box.path / name
        data = path.read_bytes()
        before = tree(box.path)
        for at in range(len(data)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert box.state().to_bytes() == data
        for damaged in (data[:100] + bytes([data[100] ^ 1]) + data[101:], b"", data.replace(b"1.1.0", b"0.1.0"), None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            status = box_status(box.path)
            assert status.code == (4 if name == "state.json" else 0)
            assert all(name in problem and "copy is used" in problem for problem in status.problems)
            assert gc(box.path).blobs == 0
            assert path.read_bytes() == data
            assert box_status(box.path).code == 0
        assert {key: content for key, (_, content) in tree(box.path).items()} == {
            key: content for key, (_, content) in before.items()
        }
        path.write_bytes(b"damaged")
        remove(box.path, MODEL, "1.0.0")
        refused(lambda: install(bundle, box.path, ANY), InputError, "1.1.0 or later")

    def test_both_damaged_stop_every_command(self, box: Box, bundle: Path) -> None:
        for name in STATES:
            path = box.path / name
            path.write_bytes(path.read_bytes().replace(b"1.1.0", b"1.1.1"))
        before = everything(box.path)
        for act in (*commands(box, bundle), lambda: box_status(box.path)):
            refused(act, DamagedArtifactError, "state.json", "SHA-256")
        assert everything(box.path) == before

    def test_a_state_that_contradicts_itself_is_damaged(self, box: Box) -> None:
        state = box.state()
        model = state.models[MODEL].model_copy(update={"active": "3.0.0"})
        with pytest.raises(DamagedArtifactError, match=r"3\.0\.0 is in use"):
            BoxState.from_bytes(state.with_model(MODEL, model).to_bytes(), "x")

    @pytest.mark.parametrize("lost", ["artifact/head.onnx", "LICENSE.txt", "atlas.json", "blob"])
    def test_gc_removes_nothing_while_state_and_disk_disagree(self, box: Box, lost: str) -> None:
        (box.blobs / ("0" * 64)).write_bytes(b"used by nobody")
        folder = box.version_folder(MODEL, "1.0.0")
        path = box.blob(box.manifest(box.state(), MODEL, "1.0.0").files["README.md"].sha256)
        (path if lost == "blob" else folder / lost).unlink()
        before = tree(box.path)
        refused(lambda: gc(box.path), DamagedArtifactError, "install the bundle of sed-pocket 1.")
        assert tree(box.path) == before


class TestDamagedBlobs:
    @pytest.mark.parametrize("damage", ["flip", "cut", "gone", "link", "folder"])
    def test_reinstalling_repairs_a_shared_blob(
        self, box: Box, bundle: Path, keys: Keys, tmp_path: Path, damage: str
    ) -> None:
        """Both versions use it: neither activates; one bundle, installed again, repairs both."""
        sha256 = box.manifest(box.state(), MODEL, "1.0.0").files["artifact/head.onnx"].sha256
        blob = box.blob(sha256)
        data = blob.read_bytes()
        if damage == "flip":
            blob.chmod(0o644)
            blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        elif damage == "cut":
            blob.chmod(0o644)
            os.truncate(blob, 10)
        else:
            blob.unlink()
            if damage == "link":
                (tmp_path / "elsewhere").write_bytes(data)
                blob.symlink_to(tmp_path / "elsewhere")
            if damage == "folder":
                blob.mkdir()
        for act in (lambda: activate(box.path, MODEL, "1.1.0"), lambda: rollback(box.path, MODEL)):
            refused(act, DamagedArtifactError, "install the bundle of sed-pocket 1.", "again")
        if damage == "folder":
            refused(lambda: install(bundle, box.path, Trust(keys.public)), EnvironmentNotFitError, "directory")
            blob.rmdir()
        installed = install(bundle, box.path, Trust(keys.public))
        assert (installed.new, installed.written_bytes) == (False, len(data))
        for version in ("1.0.0", "1.1.0"):
            open_version(box, box.state(), MODEL, version)
        assert box_status(box.path, read_all=True).code == 0
        assert install(bundle, box.path, Trust(keys.public)).repaired == 0
        assert rollback(box.path, MODEL).now == "1.0.0"
        gc(box.path)

    def test_a_newer_version_with_the_damaged_blob_installs_and_repairs(
        self, box: Box, newer: Path, keys: Keys, tmp_path: Path
    ) -> None:
        blob = box.version_folder(MODEL, "1.1.0") / "artifact" / "weights.safetensors"
        blob.chmod(0o644)
        os.truncate(blob, 1000)
        newest = changed(newer, tmp_path / "newest.atlas", keys.private, version="1.2.0")
        installed = install(newest, box.path, Trust(keys.public))
        assert (installed.new, installed.repaired) == (True, 2)
        assert box_status(box.path, read_all=True).code == 0

    @pytest.mark.parametrize("name", ["atlas.json", "atlas.json.sig", "README.md", "artifact", "."])
    def test_reinstalling_brings_back_what_a_version_lost(
        self, box: Box, newer: Path, keys: Keys, original: Path, name: str
    ) -> None:
        path = box.version_folder(MODEL, "1.1.0") / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
        install(newer, box.path, Trust(keys.public))
        assert box_status(box.path, read_all=True).code == 0
        assert everything(box.models) == everything(original / "models")

    def test_damage_in_one_version_leaves_the_other_to_be_activated(
        self, box: Box, wrong: dict[str, Path], keys: Keys
    ) -> None:
        """wrong["event"] shares most blobs, but not its manifest."""
        install(wrong["event"], box.path, Trust(keys.public))
        state = box.state()
        with box.locked():
            active = state.models[MODEL].model_copy(update={"active": "2.0.0", "previous": "1.1.0"})
            box.switch(state.with_model(MODEL, active))
        damaged = box.version_folder(MODEL, "2.0.0") / "artifact" / "manifest.json"
        damaged.chmod(0o644)
        damaged.write_bytes(b"{}")
        refused(lambda: activate(box.path, MODEL, "2.0.0"), DamagedArtifactError, "install the bundle")
        assert activate(box.path, MODEL, "1.0.0", allow_downgrade=True).now == "1.0.0"
        with box.locked():
            box.switch(state.with_model(MODEL, active))
        assert rollback(box.path, MODEL).now == "1.1.0"
        remove(box.path, MODEL, "2.0.0")
        gc(box.path)
        assert box_status(box.path, read_all=True).code == 0

    def test_no_link_leads_the_repair_out_of_the_box(self, box: Box, newer: Path, keys: Keys, tmp_path: Path) -> None:
        folder = box.version_folder(MODEL, "1.1.0") / "artifact"
        folder.rename(tmp_path / "theirs")
        (tmp_path / "theirs" / "head.onnx").unlink()
        (tmp_path / "theirs" / "head.onnx").write_bytes(b"theirs")
        folder.symlink_to(tmp_path / "theirs")
        refused(lambda: install(newer, box.path, Trust(keys.public)), EnvironmentNotFitError, "link")
        assert (tmp_path / "theirs" / "head.onnx").read_bytes() == b"theirs"
        shutil.rmtree(tmp_path / "theirs" / "audio")
        refused(lambda: install(newer, box.path, Trust(keys.public)), EnvironmentNotFitError, "link")
        assert not (tmp_path / "theirs" / "audio").exists()


def test_the_marker_is_what_makes_a_box(box: Box, bundle: Path) -> None:
    (box.path / MARKER_NAME).unlink()
    before = everything(box.path)
    for act in (*commands(box, bundle), lambda: box_status(box.path)):
        refused(act, InputError, "expected a box")
    assert everything(box.path) == before


def test_status_as_json_has_the_damage(box: Box) -> None:
    (box.path / "state.json").write_bytes(b"{}")
    assert "state.json" in json.loads(json.dumps(box_status(box.path).to_json()))["damage"][0]
