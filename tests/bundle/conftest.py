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


@pytest.fixture(scope="session")
def whisper(pocket_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """whisper-pocket with verify's results of one engine. Read only."""
    folder = tmp_path_factory.mktemp("verified") / "whisper-pocket" / "fp32"
    shutil.copytree(pocket_artifact, folder, ignore=shutil.ignore_patterns("results", "logs", "report.html"))
    from verify.run import verify_artifact

    assert verify_artifact(folder, engines=["onnxruntime"], runs=2, threads=1).verdict == "pass"
    return folder


@pytest.fixture(scope="session")
def published(verified: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sed-pocket's repository. Read only."""
    from repositories import publish

    return publish(verified, tmp_path_factory.mktemp("published") / "sed-pocket")


@pytest.fixture
def own(verified: Path, tmp_path: Path) -> Path:
    """A copy of sed-pocket with its results, to be spoilt."""
    return Path(shutil.copytree(verified, tmp_path / "own"))
