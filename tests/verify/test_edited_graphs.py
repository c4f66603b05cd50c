"""Faults put into the files of an artifact: ONNX graphs and weights are edited, and nothing of verify knows how.

Each is a mistake that a port, a converter or a kernel has made: a gain, heads or positions in another order, another
constant, lost cache rows, rounding where there should be none. The gate that sees it is not said, only that one does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from self_test.catalogue import faults_of
from self_test.known_fault import KnownFault, cases_of, in_graphs
from self_test.subject import Subject

from runtime.artifact import open_artifact
from runtime.engines import open_engine

VARIANTS = ["fp32", pytest.param("fp16", marks=pytest.mark.slow)]
GRAPHS = ("encoder", "step", "prefill", "align")


@pytest.fixture(scope="module", params=VARIANTS)
def subject(
    request: pytest.FixtureRequest, shared_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    if request.param == "fp32":
        artifact = open_artifact(request.getfixturevalue("pocket_artifact"))
    else:
        from export.pipeline import export_model

        samples = Path(__file__).resolve().parents[2] / "samples"
        out, clips = shared_folder / "edited", [samples / "short_en.wav"]
        artifact = open_artifact(
            export_model("whisper-pocket", variant="fp16", formats=["onnx"], out=out, recordings=clips)
        )
    engine = open_engine(artifact, "onnxruntime", threads=1)
    yield Subject(artifact, engine, scratch=tmp_path_factory.mktemp("edited"))
    engine.close()


def test_what_was_only_written_anew_passes(subject: Subject) -> None:
    nothing = in_graphs(GRAPHS, lambda *_: None)
    unharmed = KnownFault("", "structural", "", "", "fp32", "", nothing, cases_of(*GRAPHS, decisions=True))
    accuracy = unharmed.judge(subject)
    assert accuracy.verdict == "pass", accuracy.reason


def test_every_fault_fails(subject: Subject) -> None:
    """Of the strength that a precision has to show."""
    missed = {}
    for fault in faults_of("whisper-pocket", subject.artifact.content.variant).values():
        if fault.kind == "runtime" or fault.device != "cpu":
            continue
        accuracy = fault.judge(subject, fault.scale.start if fault.scale else 1.0)
        if accuracy.verdict != "fail":
            shares = [one.share for c in accuracy.cases for out in c.outputs for one in out.judged]
            missed[fault.name] = max(shares)
    assert missed == {}, "by the largest share of a limit that each used"
