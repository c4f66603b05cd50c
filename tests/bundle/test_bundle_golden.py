"""A bundle carries the golden arrays of its self-test; the box makes the large ones itself, and tells what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from frozen_bundles import ALL, unpacked
from safetensors.numpy import load_file
from self_test.known_fault import Edited

from export.freeze.evidence import Evidence
from export.freeze.pipeline import freeze_artifact
from export.freeze.profiles import self_test as choose
from runtime.artifact import GOLDEN_NAME, WHOLE_NAME, open_artifact
from runtime.box.self_test import self_test
from runtime.bundle.manifest import BundleManifest
from runtime.errors import DamagedArtifactError, InputError
from runtime.golden import handed_on
from runtime.manifest import Manifest
from verify.results import AccuracyFile, EngineAccuracy, RecordingAccuracy
from verify.run import verify_artifact

GAIN = np.float32(1.01)


@pytest.fixture(scope="module")
def box(pocket_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BundleManifest]:
    """Return the artifact's folder of whisper-pocket out of a bundle, and the bundle's manifest. Read only."""
    folder = tmp_path_factory.mktemp("bundle")
    frozen = freeze_artifact(pocket_artifact, "cpu", "1.0.0", out=folder, allowed=ALL)
    return folder / "box" / "artifact", unpacked(frozen.path, folder / "box")


def test_every_graph_is_tested_and_the_rest_is_known_by_hash(
    box: tuple[Path, BundleManifest], pocket_artifact: Path
) -> None:
    artifact, whole = open_artifact(box[0]), open_artifact(pocket_artifact)
    content = artifact.content
    assert {case.graph for case in content.cases} == content.graphs.keys() == whole.content.graphs.keys()
    assert tuple(case.name for case in content.cases) == box[1].self_test.cases
    assert content.recordings == whole.content.recordings
    known = Manifest.from_bytes(artifact.file(WHOLE_NAME).read_bytes(), WHOLE_NAME)
    assert known.content_sha256 == whole.manifest.content_sha256
    assert known.content.files[GOLDEN_NAME] == whole.content.files[GOLDEN_NAME]
    carried, every = load_file(box[0] / GOLDEN_NAME), load_file(pocket_artifact / GOLDEN_NAME)
    assert all(np.array_equal(array, every[key]) for key, array in carried.items() if key in every)
    made = {name for case in content.cases for name in handed_on(content, case)}
    assert made == {spec.name for spec in content.graphs["step"].inputs if spec.name.startswith("cross_")}
    thinned = {key: array for key, array in carried.items() if key not in every}
    assert len(thinned) == len(made)
    for key, array in thinned.items():
        assert np.array_equal(array, every[key.rpartition("/")[0]][:, :, ::16])
    assert content.files[GOLDEN_NAME].size < 0.3 * whole.content.files[GOLDEN_NAME].size


def test_nothing_that_asks_for_all_golden_arrays_takes_it(box: tuple[Path, BundleManifest], tmp_path: Path) -> None:
    cases = len(box[1].self_test.cases)
    with pytest.raises(InputError, match=rf"out of a bundle.* self-test alone \({cases} cases\)"):
        verify_artifact(box[0])
    assert not (box[0] / "results").exists()
    with pytest.raises(InputError, match="out of a bundle"):
        freeze_artifact(box[0], "cpu", "1.0.1", out=tmp_path, allowed=ALL)
    assert not any(tmp_path.iterdir())


def test_a_box_hears_a_recording_that_no_sound_engine_hears_otherwise(pocket_artifact: Path) -> None:
    """A correct build below fp32 may go another way from a near-tie on; a box compares what it hears as it is."""
    content = open_artifact(pocket_artifact).content
    first, second, *_ = names = [recording.name for recording in content.recordings]
    heard = (RecordingAccuracy(name=first, near_tie=True), RecordingAccuracy(name=second))
    engines = (EngineAccuracy.model_construct(recordings=heard),)
    evidence = Evidence(None, accuracy=AccuracyFile.model_construct(engines=engines))
    assert choose(content).recording == first
    assert choose(content, evidence.differing).recording == second
    assert choose(content, names).recording == first


def test_a_sound_one_passes(box: tuple[Path, BundleManifest]) -> None:
    found = self_test(open_artifact(box[0]), box[1], "cpu")
    assert (found.verdict, found.cases) == ("pass", box[1].self_test.cases)
    assert found.worst is not None
    assert found.worst.share < 0.5


def test_what_nobody_hands_on_is_missed(box: tuple[Path, BundleManifest]) -> None:
    without = box[1].self_test.model_copy(update={"cases": ("prefill_1",)})
    with pytest.raises(DamagedArtifactError, match="expected the case 'speech' before 'prefill_1'"):
        self_test(open_artifact(box[0]), box[1].model_copy(update={"self_test": without}), "cpu")


# Of what the encoder hands on one row in 16 is compared; the others show in what the decoder makes of them.
OTHER_ROWS = np.where(np.arange(300) % 16 == 0, np.float32(1), GAIN).astype(np.float32)[:, None]


@pytest.mark.parametrize(
    ("graph", "output", "factor"),
    [
        ("encoder", "cross_v_0", GAIN),
        ("encoder", "cross_v_0", OTHER_ROWS),
        ("step", "logits", GAIN),
    ],
    ids=["encoder", "rows that are not compared", "step"],
)
def test_a_box_tells_what_is_wrong(
    box: tuple[Path, BundleManifest], tmp_path: Path, graph: str, output: str, factor: np.ndarray
) -> None:
    folder = Path(shutil.copytree(box[0], tmp_path / "artifact"))
    artifact = open_artifact(folder)
    edited = Edited(artifact, graph)
    edited.behind_output(output, "Mul", factor)
    onnx.save(edited.model, str(folder / edited.name))
    found = self_test(artifact, box[1], "cpu")
    assert (found.verdict, found.recording) == ("fail", box[1].self_test.recording)
    assert found.heard is None, "it is told by the cases, before a recording is heard"
