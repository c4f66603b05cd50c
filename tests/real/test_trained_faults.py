"""What a runtime gets wrong shows in the recordings of trained models, each fault in the one that is there for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from self_test.catalogue import catalogue
from self_test.subject import Subject
from trained_models import Trained

from runtime.artifact import open_artifact
from runtime.engines import open_engine
from runtime.engines.base import Engine

pytestmark = pytest.mark.real

FAULTS = {(f.model, f.name): f for f in catalogue() if f.kind == "runtime" and not f.model.endswith("-pocket")}
# What is sure to differ, where that is not the text.
DIFFERS = {
    "starts 0.02 s late": "times",
    "offset of 0.05": "times",
    "temperature 0 alone": "temperatures",
    **dict.fromkeys(("timestamp rules off", "nearest sample", "clipped"), ""),
}


@pytest.fixture(scope="module")
def engines(trained: Trained) -> Iterator[dict[str, Engine]]:
    opened = {
        model: open_engine(open_artifact(trained(model, "fp32")), "onnxruntime", "cpu", 1)
        for model in ("whisper-tiny.en", "whisper-base")
    }
    yield opened
    for engine in opened.values():
        engine.close()


@pytest.mark.parametrize(("model", "fault"), FAULTS)
def test_a_fault_of_the_runtime_fails(model: str, fault: str, trained: Trained, engines: dict[str, Engine]) -> None:
    """That a correct build passes is test_trained_verdict.py's."""
    differs = DIFFERS.get(fault, "text")
    accuracy = FAULTS[model, fault].judge(Subject(open_artifact(trained(model, "fp32")), engines[model]))
    assert accuracy.verdict == "fail"
    assert not any(heard.blocked for heard in accuracy.recordings)
    assert any(gate.name.startswith(f"task.{differs}") for gate in accuracy.gates if gate.passed is False)


@pytest.mark.parametrize("model", ["whisper-tiny.en", "whisper-base"])
def test_a_window_of_fast_speech_fills_much_of_the_cache(model: str, trained: Trained) -> None:
    content = open_artifact(trained(model, "fp32")).content
    (fast,) = [recording for recording in content.recordings if recording.name == "fast_en"]
    (segment,) = fast.result["segments"]
    assert len(segment["tokens"]) > 150
    assert {case.name for case in content.cases if case.graph == "step"} >= {"step_64", "step_128"}
