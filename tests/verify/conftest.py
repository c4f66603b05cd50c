"""What tests of one family begin with; a module that uses it names the family's fixtures in FAMILY."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_modules import OpenVariants

from runtime.artifact import open_artifact
from runtime.manifest import Content
from verify.run import VerifyResult, verify_artifact


@pytest.fixture(scope="module")
def opened(request: pytest.FixtureRequest) -> Iterator[OpenVariants]:
    """The family's artifacts, opened when a test asks for their variant."""
    found = OpenVariants(request.module.FAMILY, request)
    yield found
    found.close()


@pytest.fixture
def variant() -> str:
    """The variant of tests that are not parametrized by it."""
    return "fp32"


@pytest.fixture(scope="module")
def verified(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VerifyResult:
    """What verify says of a copy of the family's fp32 artifact."""
    artifact = request.getfixturevalue(f"{request.module.FAMILY}_artifact")
    copy = Path(shutil.copytree(artifact, tmp_path_factory.mktemp("verified") / "fp32"))
    return verify_artifact(copy, runs=2, threads=1)


@pytest.fixture(scope="module")
def content(verified: VerifyResult) -> Content:
    """What that artifact's manifest says."""
    return open_artifact(verified.report.parent).content
