"""A verified artifact and a pair of keys, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime.bundle.signing import generate_key


@pytest.fixture(scope="session")
def verified(sed_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sed-pocket with verify's results. Read only: copy it to change it."""
    from verify.run import verify_artifact

    folder = tmp_path_factory.mktemp("verified") / "sed-pocket" / "fp32"
    shutil.copytree(sed_artifact, folder, ignore=shutil.ignore_patterns("results", "logs", "report.html"))
    assert verify_artifact(folder, runs=2).verdict == "pass"
    return folder


@pytest.fixture
def folder(verified: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(verified, tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return generate_key(tmp_path_factory.mktemp("keys"))
