"""What tests of injected bugs begin with; a module that uses it names its family's fixtures in FAMILY."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faulty_modules import OpenVariants


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
