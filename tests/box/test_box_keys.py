"""A box whose key was replaced: what the old one signed is not used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from box_bundles import MODEL, Keys, changed, refused, tree

from runtime.box.install import Trust, install
from runtime.box.root import Box
from runtime.box.status import box_status
from runtime.box.switch import activate, rollback
from runtime.bundle.archive import open_bundle
from runtime.bundle.signing import key_id, sign
from runtime.errors import DamagedArtifactError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def repinned(box: Box, bundle: Path, keys: Keys, tmp_path: Path) -> Box:
    """A box whose key was replaced by an install of 1.2.0."""
    newest = changed(bundle, tmp_path / "newest.atlas", keys.other_private, version="1.2.0")
    install(newest, box.path, Trust(keys.other_public, repin=True))
    return box


def test_versions_of_the_old_key_are_not_activated(repinned: Box, keys: Keys) -> None:
    before = tree(repinned.path)
    for act in (
        lambda: activate(repinned.path, MODEL, "1.1.0"),
        lambda: activate(repinned.path, MODEL, "1.0.0", allow_downgrade=True),
        lambda: rollback(repinned.path, MODEL),
    ):
        refused(act, DamagedArtifactError, key_id(keys.public), key_id(keys.other_public), "--repin")
    assert tree(repinned.path) == before


def test_status_says_so(repinned: Box) -> None:
    status = box_status(repinned.path)
    assert status.code == 4
    assert "1.1.0 is signed with a key that --repin has replaced" in status.problems[0]
    trusted = {version.version: version.trusted for version in status.models[0].installed}
    assert trusted == {"1.0.0": False, "1.1.0": False, "1.2.0": True}
    said = subprocess.run(
        [sys.executable, "-m", "atlasport", "status", "--root", repinned.path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 4
    assert "no rollback to 1.0.0: its key was replaced" in said.stdout
    activate(repinned.path, MODEL, "1.2.0")
    assert box_status(repinned.path).code == 0
    refused(lambda: rollback(repinned.path, MODEL), DamagedArtifactError, "--repin")


def test_the_old_version_signed_with_the_new_key_is_trusted_again(
    repinned: Box, bundle: Path, keys: Keys, tmp_path: Path
) -> None:
    again = changed(bundle, tmp_path / "again.atlas", keys.other_private)
    install(again, repinned.path, Trust(keys.other_public))
    assert activate(repinned.path, MODEL, "1.0.0", allow_downgrade=True).now == "1.0.0"
    with open_bundle(again) as reader:
        expected = sign(reader.manifest_bytes, keys.other_private)
    assert (repinned.version_folder(MODEL, "1.0.0") / "atlas.json.sig").read_bytes() == expected


def test_the_old_key_comes_back_by_repin_only(repinned: Box, newer: Path, keys: Keys) -> None:
    refused(lambda: install(newer, repinned.path, Trust(keys.public)), DamagedArtifactError, "--repin")
    install(newer, repinned.path, Trust(keys.public, repin=True))
    assert activate(repinned.path, MODEL, "1.1.0").now == "1.1.0"
