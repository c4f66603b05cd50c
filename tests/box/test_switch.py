"""Activation, rollback and the self-test between them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from box_bundles import MODEL, changed, requiring, tree

from runtime.artifact import open_artifact
from runtime.box.install import Trust, install
from runtime.box.keep import remove
from runtime.box.root import Box
from runtime.box.self_test import first_difference, last
from runtime.box.switch import activate, rollback
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, GateError, InputError

ANY = Trust(allow_unsigned=True)


@pytest.fixture
def box(tmp_path: Path, bundle: Path, newer: Path) -> Box:
    """A box with 1.0.0 active and 1.1.0 installed."""
    root = tmp_path / "box"
    install(bundle, root, ANY)
    activate(root, MODEL, "1.0.0")
    install(newer, root, ANY)
    return Box(root)


def versions(box: Box) -> tuple[str | None, str | None]:
    """The active and the previous version."""
    model = box.state().models[MODEL]
    return model.active, model.previous


def test_a_passed_self_test_switches(box: Box) -> None:
    switched = activate(box.path, MODEL, "1.1.0")
    assert versions(box) == ("1.1.0", "1.0.0")
    result = switched.self_test
    assert result is not None
    assert (result.verdict, result.device, result.engine, result.simulated) == ("pass", "cpu", "onnxruntime", False)
    assert result.worst is not None
    assert result.worst.share < 1
    assert "Siren" in (result.heard or "")
    assert last(box, MODEL, "1.1.0") == result


@pytest.mark.parametrize(
    ("fault", "metric"),
    [("gain", "relative_l2|max_relative"), ("event", "events: expected"), ("shape", "self-test failed")],
)
def test_a_failed_self_test_leaves_the_old_version_active(
    box: Box, wrong: dict[str, Path], fault: str, metric: str
) -> None:
    """Graphs that are a tenth too quiet for their golden outputs, and a recording with one event less."""
    install(wrong[fault], box.path, ANY)
    with pytest.raises(GateError, match=metric) as caught:
        activate(box.path, MODEL, "2.0.0")
    assert "1.0.0 stays active" in str(caught.value)
    assert versions(box) == ("1.0.0", None)
    result = last(box, MODEL, "2.0.0")
    assert result is not None
    assert result.verdict == "fail"
    if fault == "gain":
        # Golden outputs 1.1 times too large: relative L2 is 0.1 / 1.1 on every output of the head.
        assert result.worst is not None
        assert result.worst.value == pytest.approx(0.1 / 1.1, rel=1e-3)


def test_a_graph_that_this_engine_does_not_open_leaves_the_old_version_active(box: Box, wrong: dict[str, Path]) -> None:
    install(wrong["graph"], box.path, ANY)
    with pytest.raises(EnvironmentNotFitError, match="cannot open it on cpu"):
        activate(box.path, MODEL, "2.0.0")
    assert versions(box) == ("1.0.0", None)


def test_a_self_test_that_cannot_run_leaves_the_old_version_active(box: Box) -> None:
    with pytest.raises(EnvironmentNotFitError, match="npu:0"):
        activate(box.path, MODEL, "1.1.0", device="npu:0")
    assert versions(box) == ("1.0.0", None)
    result = last(box, MODEL, "1.1.0")
    assert result is not None
    assert result.verdict == "blocked"


def test_rollback_goes_back_one_step_and_only_one(box: Box) -> None:
    activate(box.path, MODEL, "1.1.0")
    switched = rollback(box.path, MODEL)
    assert (switched.before, switched.now) == ("1.1.0", "1.0.0")
    assert switched.self_test is not None
    assert switched.self_test.verdict == "pass"
    assert versions(box) == ("1.0.0", None)
    with pytest.raises(InputError, match="previous version, found none"):
        rollback(box.path, MODEL)
    activate(box.path, MODEL, "1.1.0")
    assert versions(box) == ("1.1.0", "1.0.0")


def test_rollback_works_where_the_self_test_cannot_run(box: Box) -> None:
    activate(box.path, MODEL, "1.1.0")
    switched = rollback(box.path, MODEL, device="npu:0")
    assert switched.self_test is not None
    assert switched.self_test.verdict == "blocked"
    assert versions(box) == ("1.0.0", None)


def test_rollback_works_where_the_self_test_fails(box: Box, wrong: dict[str, Path]) -> None:
    install(wrong["shape"], box.path, ANY)
    state = box.state()
    with box.locked():  # as if its graph had worked with the engine of that day
        models = state.models[MODEL].model_copy(update={"previous": "2.0.0"})
        box.switch(state.with_model(MODEL, models))
    switched = rollback(box.path, MODEL)
    assert switched.self_test is not None
    assert switched.self_test.verdict == "fail"
    assert versions(box) == ("2.0.0", None)


def test_a_wrong_device_name_switches_nothing(box: Box) -> None:
    activate(box.path, MODEL, "1.1.0")
    before = tree(box.path)
    for act in (lambda: rollback(box.path, MODEL, "gpu"), lambda: activate(box.path, MODEL, "1.1.0", "gpu")):
        with pytest.raises(InputError, match="npu:0"):
            act()
    assert tree(box.path) == before


def test_rollback_without_a_self_test(box: Box) -> None:
    activate(box.path, MODEL, "1.1.0")
    assert rollback(box.path, MODEL, test=False).self_test is None
    assert versions(box) == ("1.0.0", None)


def test_rollback_to_a_damaged_version_is_refused(box: Box) -> None:
    activate(box.path, MODEL, "1.1.0")
    (box.version_folder(MODEL, "1.0.0") / "artifact" / "head.onnx").unlink()
    before = tree(box.path)
    with pytest.raises(DamagedArtifactError, match=r"head\.onnx"):
        rollback(box.path, MODEL)
    assert tree(box.path) == before


def test_activation_goes_up_only(box: Box) -> None:
    activate(box.path, MODEL, "1.1.0")
    with pytest.raises(InputError, match="--allow-downgrade"):
        activate(box.path, MODEL, "1.0.0")
    activate(box.path, MODEL, "1.0.0", allow_downgrade=True)
    assert versions(box) == ("1.0.0", "1.1.0")


def test_activating_the_active_version_keeps_the_way_back(box: Box) -> None:
    activate(box.path, MODEL, "1.1.0")
    activate(box.path, MODEL, "1.1.0")
    assert versions(box) == ("1.1.0", "1.0.0")


@pytest.mark.parametrize(("model", "version"), [("sed-poket", "1.0.0"), (MODEL, "1.2.0"), (MODEL, "../1.0.0")])
def test_what_is_not_installed_is_refused_by_name(box: Box, model: str, version: str) -> None:
    before = tree(box.path)
    for act in (lambda: activate(box.path, model, version), lambda: remove(box.path, model, version)):
        with pytest.raises(InputError, match=r"sed-pocket|1\.0\.0, 1\.1\.0"):
            act()
    assert tree(box.path) == before


def test_removing_the_previous_version_leaves_no_way_back(box: Box) -> None:
    activate(box.path, MODEL, "1.1.0")
    remove(box.path, MODEL, "1.0.0")
    assert versions(box) == ("1.1.0", None)


def test_a_damaged_file_is_found_before_the_engine_sees_it(box: Box) -> None:
    blob = box.version_folder(MODEL, "1.1.0") / "artifact" / "weights.safetensors"
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(-10, 2)
        file.write(b"x")
    with pytest.raises(DamagedArtifactError, match="weights"):
        activate(box.path, MODEL, "1.1.0")


def test_two_models_are_switched_apart(box: Box, bundle: Path, tmp_path: Path) -> None:
    other = changed(bundle, tmp_path / "other.atlas", None, model="sed-copy", version="3.0.0")
    install(other, box.path, ANY)
    activate(box.path, "sed-copy", "3.0.0")
    assert versions(box) == ("1.0.0", None)
    assert box.state().models["sed-copy"].active == "3.0.0"


def test_requirements_are_checked_again_before_the_switch(box: Box, bundle: Path, tmp_path: Path) -> None:
    """The machine may have changed since the install; here the bundle is made to ask for what only cpu has not."""
    demanding = requiring(bundle, tmp_path / "soc.atlas", None, socs=("Ascend910B",), torch_npu=">=2.9", cann=">=8.5")
    with pytest.raises(InputError, match="another bundle"):
        install(demanding, box.path, ANY)
    newest = changed(demanding, tmp_path / "newest.atlas", None, version="1.2.0")
    install(newest, box.path, ANY, device="cpu")
    with pytest.raises(EnvironmentNotFitError, match="npu:0"):
        activate(box.path, MODEL, "1.2.0", device="npu:0")
    assert versions(box) == ("1.0.0", None)


class TestFirstDifference:
    """Each change is one that a person hearing the recording would object to, or one that he could not hear."""

    @pytest.fixture
    def sounds(self, sed_artifact: Path) -> dict[str, Any]:
        result: dict[str, Any] = open_artifact(sed_artifact).content.recordings[0].result
        return result

    @pytest.fixture
    def speech(self) -> dict[str, Any]:
        segment = {"start": 0.0, "end": 2.5, "text": " hello", "tokens": [1, 2], "avg_logprob": -0.25}
        return {"text": "hello", "language": "en", "segments": [segment]}

    def test_equal(self, sounds: dict[str, Any], speech: dict[str, Any]) -> None:
        for result in (sounds, speech):
            assert first_difference(result, json.loads(json.dumps(result))) is None

    @pytest.mark.parametrize(
        ("change", "counts"),
        [
            (lambda r: r["events"][0].update(onset=r["events"][0]["onset"] + 0.16), False),
            (lambda r: r["events"][0].update(onset=r["events"][0]["onset"] + 0.24), True),
            (lambda r: r["events"][1].update(label="Silence"), True),
            (lambda r: r["events"].pop(), True),
            (lambda r: r["events"][2].update(score=r["events"][2]["score"] - 0.01), False),
            (lambda r: r["tags"][0].update(score=r["tags"][0]["score"] - 0.03), True),
            (lambda r: r["tags"].reverse(), False),
            (lambda r: r["tags"][-1].update(label="Thunder"), False),
            (lambda r: r["tags"][0].update(label="Thunder"), True),
            (lambda r: r.pop("events"), True),
        ],
    )
    def test_sounds(self, sounds: dict[str, Any], change: Callable[[Any], Any], counts: bool) -> None:  # noqa: FBT001
        found = copy.deepcopy(sounds)
        change(found)
        assert (first_difference(sounds, found) is not None) is counts

    @pytest.mark.parametrize(
        ("change", "counts"),
        [
            (lambda r: r.update(text="hallo"), True),
            (lambda r: r.update(language="de"), True),
            (lambda r: r["segments"][0].update(end=2.52), True),
            (lambda r: r["segments"][0]["tokens"].append(3), True),
            (lambda r: r["segments"][0].update(avg_logprob=-0.26), False),
            (lambda r: r.update(segments=None), True),
            (lambda r: r.update(timings={"total_s": 1.0}), False),
        ],
    )
    def test_speech(self, speech: dict[str, Any], change: Callable[[Any], Any], counts: bool) -> None:  # noqa: FBT001
        found = copy.deepcopy(speech)
        change(found)
        assert (first_difference(speech, found) is not None) is counts
