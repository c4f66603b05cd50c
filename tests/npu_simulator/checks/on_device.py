"""What the checks of families share: pytest_plugins = ("on_device",) gives each its artifact on a healthy device.

The artifact to check comes in CHECK_ARTIFACT, with TorchScript and .pt2 graphs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES
from torch_npu import simulator

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.engines import load_engine
from runtime.engines.base import Engine, EngineSettings
from runtime.families import family_of
from runtime.family import Recognizer
from runtime.results import Result

ARTIFACT = open_artifact(Path(os.environ["CHECK_ARTIFACT"]))
CHECKED = FAMILIES[ARTIFACT.content.family]
RECORDING, OTHER = CHECKED.recording, CHECKED.other
ENGINES = ("torchscript", "pt2")


@dataclass(frozen=True)
class Opened:
    """The artifact opened on the device by one engine."""

    engine: Engine
    recognizer: Recognizer

    def recognize(self, path: Path, **options: Any) -> Any:
        given = family_of(ARTIFACT).options.parse(CHECKED.options | options)
        return self.recognizer.recognize(open_audio(path), given)


def opened(name: str, device: str = "npu:0", **settings: bool) -> Opened:
    engine = load_engine(ARTIFACT, name, device, 1, EngineSettings(**settings))
    return Opened(engine, family_of(ARTIFACT).open(ARTIFACT, engine, 0.0))


# Programs take a second each to open.
shared = cache(opened)


@pytest.fixture(autouse=True)
def healthy() -> Iterator[None]:
    """No faults; flags stay as the engines that are open have set them."""
    simulator.apply({})
    yield
    simulator.apply({})


@pytest.fixture(params=ENGINES)
def on_npu(request: pytest.FixtureRequest) -> Opened:
    return shared(request.param)


def alike(found: Any, expected: Any) -> bool:
    """Whether two results of `run --json` say the same; scores may differ in the last digits."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(alike(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(alike, found, expected))
    return found == pytest.approx(expected, rel=1e-3, abs=1e-4) if isinstance(expected, float) else found == expected


def said(result: Result) -> dict[str, Any]:
    """What was recognised, without where, by what, how fast, and what was asked of the device."""
    left_out = ("device", "engine", "timings", "tokens_per_s", "simulated", "counts")
    return {key: value for key, value in result.to_json().items() if key not in left_out}


def host_copies(report: dict[str, Any]) -> dict[str, int]:
    return {name: copies["count"] for name, copies in report["copies"].items() if name != "device_to_device"}


def replays() -> int:
    """How often a captured graph ran."""
    return sum(event["name"] == "replay" for event in simulator.report()["events"])
