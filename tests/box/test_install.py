"""Installing bundles: what is accepted, what is refused, and that a refusal changes nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from box_bundles import MODEL, Keys, changed, requiring, tree
from safetensors.numpy import load_file

from export.freeze.pipeline import SigningKey, freeze_artifact
from runtime.artifact import GOLDEN_NAME, WHOLE_NAME, open_artifact
from runtime.box.install import Trust, install
from runtime.box.keep import gc, remove
from runtime.box.root import Box
from runtime.box.versions import open_version
from runtime.bundle.archive import open_bundle
from runtime.bundle.manifest import Base
from runtime.bundle.signing import key_id
from runtime.errors import AtlasportError, DamagedArtifactError, EnvironmentNotFitError, InputError


@pytest.fixture
def trust(keys: Keys) -> Trust:
    return Trust(keys.public)


@pytest.fixture
def box(tmp_path: Path, bundle: Path, trust: Trust) -> Box:
    """A box with 1.0.0 installed."""
    install(bundle, tmp_path / "box", trust)
    return Box(tmp_path / "box")


def refused(box: Box, bundle: Path, trust: Trust, kind: type[AtlasportError], *parts: str, **options: Any) -> None:
    """Check that a bundle is refused in one line with these parts, and that nothing was changed."""
    before = tree(box.path)
    with pytest.raises(kind) as caught:
        install(bundle, box.path, trust, **options)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert tree(box.path) == before


def test_an_installed_version_is_the_frozen_artifact(box: Box, bundle: Path, sed_artifact: Path, keys: Keys) -> None:
    state = box.state()
    artifact, manifest = open_version(box, state, MODEL, "1.0.0")
    made = {GOLDEN_NAME, WHOLE_NAME}
    for name, entry in artifact.content.files.items():
        assert name in made or (sed_artifact / name).read_bytes() == artifact.file(name).read_bytes()
        assert (artifact.path / name).samefile(box.blob(entry.sha256))
    # By an independent reader of the archive and of the hashes.
    for path in box.blobs.iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        assert path.stat().st_mode & 0o777 == 0o444
    assert state.public_key == key_id(keys.public)
    assert state.models[MODEL].active is None
    assert state.models[MODEL].highest == "1.0.0"
    with open_bundle(bundle) as reader:
        assert (box.version_folder(MODEL, "1.0.0") / "atlas.json").read_bytes() == reader.manifest_bytes
        assert (box.version_folder(MODEL, "1.0.0") / "atlas.json.sig").read_bytes() == reader.signature
        assert manifest == reader.manifest
    assert not box.staging.exists()


def test_versions_share_blobs(box: Box, newer: Path, trust: Trust) -> None:
    before = {path.name for path in box.blobs.iterdir()}
    installed = install(newer, box.path, trust)
    assert installed.written_bytes == 0
    assert installed.reused_bytes == sum(path.stat().st_size for path in box.blobs.iterdir())
    assert {path.name for path in box.blobs.iterdir()} == before
    one, two = (box.version_folder(MODEL, version) / "artifact" / "head.onnx" for version in ("1.0.0", "1.1.0"))
    assert one.samefile(two)


def test_the_same_bundle_again_changes_nothing(box: Box, bundle: Path, newer: Path, trust: Trust) -> None:
    before = tree(box.path)
    assert install(bundle, box.path, trust).new is False
    assert tree(box.path) == before
    install(newer, box.path, trust)
    assert install(bundle, box.path, trust).new is False


def test_a_damaged_copy_of_what_is_installed_is_refused_too(
    box: Box, bundle: Path, trust: Trust, tmp_path: Path
) -> None:
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.atlas").write_bytes(data)
    refused(box, tmp_path / "bad.atlas", trust, DamagedArtifactError)


def test_another_bundle_under_an_installed_version_is_refused(
    box: Box, bundle: Path, keys: Keys, trust: Trust, tmp_path: Path
) -> None:
    other = changed(bundle, tmp_path / "other.atlas", keys.private, profile="npu")
    refused(box, other, trust, InputError, "another bundle of the installed 1.0.0", device="cpu")


@pytest.mark.parametrize("place", [0.3, 0.6, 0.95])
def test_a_damaged_bundle_installs_nothing(bundle: Path, trust: Trust, tmp_path: Path, place: float) -> None:
    """In the last blobs, too: no blob is kept before the archive was read to its end."""
    data = bytearray(bundle.read_bytes())
    data[int(len(data) * place)] ^= 1
    bad = tmp_path / "bad.atlas"
    bad.write_bytes(data)
    with pytest.raises(DamagedArtifactError):
        install(bad, tmp_path / "box", trust)
    assert list(tree(tmp_path / "box")) == ["atlasport-box"]


class TestTrust:
    def test_a_bundle_with_a_wrong_signature_does_not_touch_the_root(
        self, bundle: Path, keys: Keys, tmp_path: Path
    ) -> None:
        with pytest.raises(DamagedArtifactError):
            install(bundle, tmp_path / "box", Trust(keys.other_public))
        assert not (tmp_path / "box").exists()

    def test_unsigned_needs_a_word(self, bundle: Path, keys: Keys, tmp_path: Path) -> None:
        unsigned = changed(bundle, tmp_path / "unsigned.atlas", None)
        with pytest.raises(DamagedArtifactError, match="--allow-unsigned"):
            install(unsigned, tmp_path / "box", Trust(keys.public))
        installed = install(unsigned, tmp_path / "box", Trust(allow_unsigned=True))
        assert installed.key_id is None
        assert Box(tmp_path / "box").state().public_key is None

    def test_signed_needs_a_key_or_a_word(self, bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="--public-key"):
            install(bundle, tmp_path / "box", Trust())

    def test_allow_unsigned_does_not_excuse_a_wrong_signature(self, bundle: Path, keys: Keys, tmp_path: Path) -> None:
        with pytest.raises(DamagedArtifactError):
            install(bundle, tmp_path / "box", Trust(keys.other_public, allow_unsigned=True))

    def test_the_first_key_is_pinned(self, box: Box, bundle: Path, keys: Keys, tmp_path: Path) -> None:
        foreign = changed(bundle, tmp_path / "foreign.atlas", keys.other_private, version="1.1.0")
        other = Trust(keys.other_public)
        refused(box, foreign, other, DamagedArtifactError, key_id(keys.public), "--repin")
        install(foreign, box.path, Trust(keys.other_public, repin=True))
        state = box.state()
        assert state.public_key == key_id(keys.other_public)
        assert state.installed(MODEL, "1.0.0").key_id == key_id(keys.public)
        assert state.installed(MODEL, "1.1.0").key_id == key_id(keys.other_public)

    def test_repin_alone_keeps_a_wrong_key_out(self, box: Box, newer: Path, keys: Keys) -> None:
        refused(box, newer, Trust(keys.other_public, repin=True), DamagedArtifactError)


class TestVersions:
    def test_an_older_version_is_refused_even_after_the_newer_was_removed(
        self, bundle: Path, newer: Path, trust: Trust, tmp_path: Path
    ) -> None:
        box = Box(tmp_path / "box")
        install(newer, box.path, trust)
        refused(box, bundle, trust, InputError, "1.1.0 or later", "--allow-downgrade")
        remove(box.path, MODEL, "1.1.0")
        refused(box, bundle, trust, InputError, "1.1.0 or later")
        install(bundle, box.path, Trust(trust.public_key, allow_downgrade=True))
        assert box.state().models[MODEL].highest == "1.1.0"
        assert list(box.state().models[MODEL].installed) == ["1.0.0"]

    @pytest.mark.parametrize(("low", "high"), [("1.9.0", "1.10.0"), ("0.99.99", "1.0.0"), ("1.0.9", "1.0.10")])
    def test_versions_are_numbers(self, bundle: Path, tmp_path: Path, low: str, high: str) -> None:
        trust = Trust(allow_unsigned=True)
        lower, higher = (changed(bundle, tmp_path / f"{v}.atlas", None, version=v) for v in (low, high))
        box = Box(tmp_path / "box")
        install(lower, box.path, trust)
        install(higher, box.path, trust)
        assert box.state().models[MODEL].versions == [low, high]
        remove(box.path, MODEL, low)
        refused(box, lower, trust, InputError, high)


class TestDelta:
    @pytest.fixture(scope="class")
    def delta(
        self, bundle: Path, sed_artifact: Path, keys: Keys, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, int]:
        out = tmp_path_factory.mktemp("delta") / "delta.atlas"
        key = SigningKey(keys.private)
        frozen = freeze_artifact(sed_artifact, "cpu", "1.1.0", out=out, key=key, base=bundle, allowed=("unverified",))
        return frozen.path, frozen.saved_bytes

    def test_a_delta_on_its_base_is_a_whole_version(
        self, box: Box, delta: tuple[Path, int], bundle: Path, trust: Trust
    ) -> None:
        path, saved = delta
        assert path.stat().st_size < 0.05 * bundle.stat().st_size
        installed = install(path, box.path, trust)
        assert installed.reused_bytes >= saved
        artifact, _ = open_version(box, box.state(), MODEL, "1.1.0")
        assert "head.onnx" in artifact.content.files

    def test_a_delta_without_its_base_names_what_is_missing(
        self, delta: tuple[Path, int], trust: Trust, tmp_path: Path
    ) -> None:
        path, _ = delta
        with open_bundle(path) as reader:
            base = reader.manifest.base
            assert isinstance(base, Base)
        with pytest.raises(EnvironmentNotFitError, match=r"delta of 1\.0\.0") as caught:
            install(path, tmp_path / "box", trust)
        assert base.blobs[0] in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_file_that_changed_in_part_is_put_together_on_the_box(
        self, box: Box, bundle: Path, wrong: dict[str, Path], tmp_path: Path
    ) -> None:
        """`wrong["gain"]` is the whole bundle of an artifact with some other tensors in golden.safetensors."""
        artifact = wrong["gain"].parent / "sed-pocket" / "fp32"
        out = tmp_path / "patch.atlas"
        frozen = freeze_artifact(artifact, "cpu", "2.0.0", out=out, base=bundle, allowed=("unverified",))
        assert frozen.manifest.base is not None
        assert frozen.manifest.base.patches
        install(out, box.path, Trust(allow_unsigned=True))
        installed, _ = open_version(box, box.state(), MODEL, "2.0.0")
        carried, whole = (load_file(folder / "golden.safetensors") for folder in (installed.path, artifact))
        assert carried.keys() < whole.keys()
        assert all(np.array_equal(array, whole[key]) for key, array in carried.items())
        # What only the base used may go; the installed version is whole without it.
        remove(box.path, MODEL, "1.0.0")
        assert gc(box.path).blobs > 0
        assert install(out, box.path, Trust(allow_unsigned=True)).new is False
        # Without the version that it is a delta of there is nothing to put it together from.
        remove(box.path, MODEL, "2.0.0")
        gc(box.path)
        with pytest.raises(EnvironmentNotFitError, match="missing"):
            install(out, box.path, Trust(allow_unsigned=True))

    def test_a_damaged_blob_on_the_box_is_not_built_upon(self, box: Box, delta: tuple[Path, int], trust: Trust) -> None:
        blob = (box.version_folder(MODEL, "1.0.0") / "artifact" / "weights.safetensors").resolve()
        blob.chmod(0o644)
        with blob.open("r+b") as file:
            file.seek(1000)
            file.write(b"damage")
        refused(box, delta[0], trust, DamagedArtifactError, "damaged ", "install 1.0.0 first")


class TestRequirements:
    @pytest.mark.parametrize(
        ("needs", "parts"),
        [
            ({"python": ">=99"}, ("Python: found " + platform.python_version(), "needed >=99")),
            ({"packages": {"onnxruntime": ">=999"}}, ("onnxruntime: found ", "needed >=999")),
            ({"packages": {"no-such-package": ">=1"}}, ("no-such-package: found none", "needed >=1")),
            ({"memory_bytes": 2**60}, ("memory: found ", "needed 1073741824.0 GiB")),
        ],
    )
    def test_what_the_machine_lacks_is_told_with_what_it_has(
        self, box: Box, bundle: Path, tmp_path: Path, needs: dict[str, Any], parts: tuple[str]
    ) -> None:
        demanding = requiring(bundle, tmp_path / "demanding.atlas", None, **needs)
        refused(box, demanding, Trust(allow_unsigned=True), EnvironmentNotFitError, *parts)

    def test_everything_that_is_missing_is_in_the_one_line(self, box: Box, bundle: Path, tmp_path: Path) -> None:
        demanding = requiring(bundle, tmp_path / "demanding.atlas", None, python=">=99", memory_bytes=2**60)
        parts = ("Python: found", "memory: found")
        refused(box, demanding, Trust(allow_unsigned=True), EnvironmentNotFitError, *parts)

    def test_no_npu(self, box: Box, newer: Path, trust: Trust) -> None:
        refused(box, newer, trust, EnvironmentNotFitError, "npu:0: found that it does not open", device="npu:0")

    def test_a_disk_without_room(
        self, box: Box, newer: Path, trust: Trust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
        refused(box, newer, trust, EnvironmentNotFitError, "disk: found 1.0 MiB free, needed 32.0 MiB")


class TestRoot:
    def test_a_folder_of_something_else_is_left_alone(self, bundle: Path, trust: Trust, tmp_path: Path) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.txt").write_text("years of work")
        with pytest.raises(InputError, match="thesis"):
            install(bundle, tmp_path / "home", trust)
        assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.txt"]


class TestHardlinks:
    """`open_artifact` with a folder of blobs: a hardlink to anything but the blob of the same content is refused."""

    def test_without_blobs_an_installed_artifact_does_not_open(self, box: Box) -> None:
        with pytest.raises(DamagedArtifactError, match="hardlink"):
            open_artifact(box.version_folder(MODEL, "1.0.0") / "artifact")

    @pytest.mark.parametrize("name", ["head.onnx", "manifest.json"])
    def test_a_hardlink_to_something_else_is_refused(self, box: Box, tmp_path: Path, name: str) -> None:
        folder = box.version_folder(MODEL, "1.0.0") / "artifact"
        outside = tmp_path / "outside"
        shutil.copy(folder / name, outside)
        (folder / name).unlink()
        os.link(outside, folder / name)
        with pytest.raises(DamagedArtifactError, match="hardlink"):
            open_artifact(folder, blobs=box.blobs)
        with pytest.raises(DamagedArtifactError, match="another file"):
            open_version(box, box.state(), MODEL, "1.0.0")

    def test_a_symbolic_link_is_refused(self, box: Box) -> None:
        folder = box.version_folder(MODEL, "1.0.0") / "artifact"
        blob = box.blob(open_artifact(folder, blobs=box.blobs).content.files["head.onnx"].sha256)
        (folder / "head.onnx").unlink()
        (folder / "head.onnx").symlink_to(blob)
        with pytest.raises(DamagedArtifactError, match="symbolic link"):
            open_artifact(folder, blobs=box.blobs)
