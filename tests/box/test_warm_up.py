"""What a server recognises first: every graph that a recording needs has run before the first recording comes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from runtime.artifact import Artifact, open_artifact
from runtime.box.serve import ServedModel, Version
from runtime.engines.onnxruntime import OnnxRuntimeEngine
from runtime.families import family_of


class NotingEngine(OnnxRuntimeEngine):
    """ONNX Runtime, with the names of the graphs that were run."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact, threads=1)
        self.seen: list[str] = []

    def run(self, graph: str, inputs: Mapping[str, Any]) -> Any:
        self.seen.append(graph)
        return super().run(graph, inputs)

    def bind(self, graph: str, fixed: Mapping[str, Any]) -> Any:
        bound = super().bind(graph, fixed)

        def call(inputs: Mapping[str, Any]) -> Any:
            self.seen.append(graph)
            return bound(inputs)

        return call


def warmed(path: Path) -> list[str]:
    """Return the graphs that ran when a server opened the artifact."""
    engines: list[NotingEngine] = []

    def open_recognizer(artifact: Artifact) -> Any:
        engines.append(NotingEngine(artifact))
        return family_of(artifact).open(artifact, engines[0], None)

    model = ServedModel(lambda: Version(path, None), lambda v: open_artifact(v.folder), open_recognizer, ["json"], {})
    try:
        assert model.open()
        assert not model.open()
    finally:
        model.close()
    return engines[0].seen


@pytest.mark.parametrize(
    ("fixture", "needed"),
    [
        pytest.param("granite_artifact", {"encode_project", "embed", "prefill", "decode"}, marks=pytest.mark.slow),
        ("pocket_artifact", {"frontend", "encoder", "prefill_4", "step"}),
        ("parakeet_artifact", {"frontend", "encoder", "step", "join"}),
        pytest.param("ctc_artifact", {"frontend", "encoder"}, marks=pytest.mark.slow),
    ],
)
def test_every_graph_has_run(fixture: str, needed: set[str], request: pytest.FixtureRequest) -> None:
    seen = warmed(request.getfixturevalue(fixture))
    assert needed <= set(seen)
    # Warming up is short: a language model is not let talk.
    assert seen.count("decode") <= 1
