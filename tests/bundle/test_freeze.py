from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from frozen_bundles import ALL, edited, open_manifest, unpacked
from toy_bundle import entry

import atlasport
from export.freeze.bom import validate
from export.freeze.evidence import read_evidence
from export.freeze.licences import SPDX, licence_of, licence_text
from export.freeze.pipeline import Frozen, SigningKey, freeze_artifact
from export.freeze.profiles import requirements
from runtime.artifact import Artifact, open_artifact
from runtime.bundle.archive import open_bundle
from runtime.bundle.manifest import Profile, Waiver
from runtime.bundle.signing import verify
from runtime.errors import DamagedArtifactError, GateError, InputError
from runtime.manifest import MANIFEST_NAME, Manifest

# --- profiles ---------------------------------------------------------------------------------------------------------


PROFILES: dict[Profile, tuple[str, set[str]]] = {
    "cpu": ("onnxruntime", {"model.ts"}),
    "npu": (
        "torchscript",
        {"frontend.onnx", "gates.onnx", "recurrence.onnx", "head.onnx", "weights.safetensors"},
    ),
    "om": ("onnxruntime", {"model.ts"}),
}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_box_opens_and_runs_what_was_frozen(
    verified: Path, tmp_path: Path, keys: tuple[Path, Path], profile: Profile
):
    engine, gone = PROFILES[profile]
    frozen = freeze_artifact(
        verified, profile, "1.2.3", out=tmp_path, key=SigningKey(keys[0]), allowed=["other-device"]
    )
    assert frozen.path.name == f"sed-pocket-fp32-{profile}-1.2.3.atlas"
    assert frozen.size == frozen.path.stat().st_size
    with open_bundle(frozen.path) as reader:
        assert reader.signature is not None
        verify(reader.manifest_bytes, reader.signature, keys[1])
    manifest = unpacked(frozen.path, tmp_path / "box")
    artifact = open_artifact(tmp_path / "box" / "artifact")
    whole = open_artifact(verified)
    assert manifest.content_sha256 == artifact.manifest.content_sha256
    assert whole.content.files.keys() - artifact.content.files.keys() == gone
    assert manifest.waivers == (("other-device",) if profile == "npu" else ())  # verified on the CPU here
    assert manifest.base is None
    assert manifest.verification is not None
    assert manifest.verification.engines == (engine,)
    assert (tmp_path / "box" / "om" / "convert.sh").exists() == (profile == "om")
    recording = next(r for r in whole.content.recordings if r.name == manifest.self_test.recording)
    assert {case.name for case in whole.content.cases} > set(manifest.self_test.cases)
    # The recording's result was made by the whole artifact's ONNX graphs at export.
    with atlasport.open(tmp_path / "box" / "artifact", engine=engine) as model:
        found = model.detect_events(tmp_path / "box" / "artifact" / recording.file).to_json()
    assert [event["label"] for event in found["events"]] == [event["label"] for event in recording.result["events"]]
    assert found["tags"][0]["score"] == pytest.approx(recording.result["tags"][0]["score"], abs=1e-4)


def test_a_profile_whose_formats_are_missing(folder: Path, tmp_path: Path):
    frozen = freeze_artifact(folder, "cpu", "1.0.0", out=tmp_path)
    unpacked(frozen.path, tmp_path / "box")
    with pytest.raises(InputError, match="expected graphs as torchscript or pt2"):
        freeze_artifact(tmp_path / "box" / "artifact", "npu", "1.0.1", out=tmp_path / "x.atlas", allowed=ALL)
    assert not (tmp_path / "x.atlas").exists()


def test_graphs_that_atc_refuses_are_not_frozen_for_it(folder: Path, tmp_path: Path):
    import onnx

    model = onnx.load(folder / "head.onnx", load_external_data=False)
    model.opset_import[0].version = 20
    (folder / "head.onnx").write_bytes(model.SerializeToString())
    manifest = open_manifest(folder)
    files = manifest.content.files | {"head.onnx": entry((folder / "head.onnx").read_bytes())}
    content = manifest.content.model_copy(update={"files": files})
    (folder / MANIFEST_NAME).write_bytes(Manifest.create(content, manifest.export).to_bytes())
    with pytest.raises(GateError, match=r"ATC will refuse .*opset") as caught:
        freeze_artifact(folder, "om", "1.0.0", out=tmp_path / "x.atlas", allowed=ALL)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.atlas").exists()
    freeze_artifact(folder, "cpu", "1.0.0", out=tmp_path / "x.atlas", allowed=ALL)


def test_requirements_are_those_of_the_facts(verified: Path):
    content = open_artifact(verified).content
    npu, cpu = requirements(verified, content, "npu"), requirements(verified, content, "cpu")
    assert npu.python == cpu.python == ">=3.10,<3.14"
    assert npu.packages.keys() == {"torch"}
    assert cpu.packages.keys() == {"onnxruntime"}
    assert (npu.torch_npu, npu.cann) == (">=2.9.0,<2.14", ">=8.5.0")
    assert (cpu.torch_npu, cpu.cann, cpu.socs) == (None, None, ())
    assert npu.socs == ("Ascend910B", "Ascend910_93")  # the matrix unit of a 310P has no float32
    fp16, bf16 = (
        requirements(verified, content.model_copy(update={"variant": variant}), "npu") for variant in ("fp16", "bf16")
    )
    assert fp16.socs == ("Ascend310P", "Ascend910B", "Ascend910_93")
    assert bf16.socs == ("Ascend910B", "Ascend910_93")


def test_the_memory_estimate_covers_what_verify_measured(verified: Path):
    content = open_artifact(verified).content
    measured = json.loads((verified / "results" / "performance.json").read_bytes())["engines"]
    for profile, engine in (("cpu", "onnxruntime"), ("npu", "torchscript")):
        peak = next(entry["memory"]["peak"] for entry in measured if entry["engine"] == engine)
        assert peak < requirements(verified, content, profile).memory_bytes < 4 * peak


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", "no results/accuracy.json"),
        ("fail", "verdict is fail"),
        ("blocked", "verdict is blocked"),
        ("other content", "of another export"),
        ("selection", "some cases only"),
        ("other engine", "not verified with onnxruntime"),
        ("damaged", "not what verify writes"),
    ],
)
def test_what_was_not_verified_is_refused(folder: Path, tmp_path: Path, fault: str, words: str):
    accuracy = folder / "results" / "accuracy.json"
    if fault == "missing":
        accuracy.unlink()
    elif fault == "damaged":
        accuracy.write_text("{")
    elif fault == "other content":
        edited(folder, content_sha256="0" * 64)
    elif fault == "selection":
        edited(folder, selection=["speech"])
    elif fault == "other engine":
        engines = json.loads(accuracy.read_bytes())["engines"]
        edited(folder, engines=[entry for entry in engines if entry["engine"] != "onnxruntime"])
    else:
        edited(folder, verdict=fault)
    out = tmp_path / "out.atlas"
    with pytest.raises(GateError, match=words) as caught:
        freeze_artifact(folder, "cpu", "1.0.0", out=out, allowed=("random-weights", "unknown-licence"))
    assert "--allow-unverified" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    frozen = freeze_artifact(folder, "cpu", "1.0.0", out=out, allowed=ALL)
    assert frozen.manifest.waivers == ("unverified",)
    card = (card_of(frozen, tmp_path / "box")).read_text()
    assert "**Frozen in spite of:** unverified" in card
    if fault in {"missing", "damaged", "other content"}:
        assert "Not run." in card
        assert frozen.manifest.verification is None
        assert "results/accuracy.json" not in frozen.manifest.files


@pytest.mark.parametrize(
    ("profile", "device", "words"),
    [
        ("npu", "cpu", "the profile npu runs on an NPU, verified on cpu only"),
        ("npu", "cuda:0", "the profile npu runs on an NPU, verified on cuda:0 only"),
        ("cpu", "cuda:0", "the profile cpu runs on the CPU, verified on cuda:0 only"),
        ("om", "cpu", None),
        ("cpu", "cpu", None),
        ("npu", "npu:1", None),
    ],
)
def test_the_device_has_to_be_the_profile_s(
    folder: Path, tmp_path: Path, profile: Profile, device: str, words: str | None
):
    engines = json.loads((folder / "results" / "accuracy.json").read_bytes())["engines"]
    edited(folder, device=device, engines=[engine | {"device": device} for engine in engines])
    others: tuple[Waiver, ...] = ("random-weights", "unknown-licence", "unverified")
    if words is None:
        assert freeze_artifact(folder, profile, "1.0.0", out=tmp_path, allowed=others).manifest.waivers == ()
        return
    with pytest.raises(GateError, match=rf"{words}; --allow-other-device freezes"):
        freeze_artifact(folder, profile, "1.0.0", out=tmp_path, allowed=others)
    frozen = freeze_artifact(folder, profile, "1.0.0", out=tmp_path, allowed=ALL)
    assert frozen.manifest.waivers == ("other-device",)
    assert "**Frozen in spite of:** other-device" in card_of(frozen, tmp_path / "box").read_text()


def card_of(frozen: Frozen, folder: Path) -> Path:
    unpacked(frozen.path, folder)
    return folder / "README.md"


def test_an_unknown_licence_is_refused(folder: Path, tmp_path: Path):
    with_source(folder, licence="unknown")
    (folder / "results" / "accuracy.json").unlink()
    with pytest.raises(GateError) as caught:
        freeze_artifact(folder, "cpu", "1.0.0", out=tmp_path)
    for words in ("licence is 'unknown'", "no results/accuracy.json", "--allow-unknown-licence --allow-unverified"):
        assert words in str(caught.value)
    frozen = freeze_artifact(folder, "cpu", "1.0.0", out=tmp_path, allowed=ALL)
    assert frozen.manifest.waivers == ("unknown-licence", "unverified")
    text = unpacked(frozen.path, tmp_path / "box")
    assert text.licence.identifier == "unknown"
    assert "No text" in (tmp_path / "box" / "LICENSE.txt").read_text()


def with_source(folder: Path, **changes: Any) -> Path:
    """Change the manifest's source as another export would have written it."""
    artifact = open_artifact(folder)
    content = artifact.content.model_copy(update={"source": artifact.content.source.model_copy(update=changes)})
    (folder / MANIFEST_NAME).write_bytes(Manifest.create(content, artifact.manifest.export).to_bytes())
    edited(folder, content_sha256=Manifest.create(content, artifact.manifest.export).content_sha256)
    return folder


def test_random_weights_need_their_flag(folder: Path, tmp_path: Path):
    with_source(folder, weights="random", seed=0)
    with pytest.raises(GateError, match=r"random; --allow-random freezes"):
        freeze_artifact(folder, "cpu", "1.0.0", out=tmp_path, allowed=("unverified", "unknown-licence"))
    frozen = freeze_artifact(folder, "cpu", "1.0.0", out=tmp_path, allowed=("random-weights",))
    assert frozen.manifest.waivers == ("random-weights",)


def test_a_damaged_artifact_is_not_frozen(folder: Path, tmp_path: Path):
    data = bytearray((folder / "head.onnx").read_bytes())
    data[100] ^= 1
    (folder / "head.onnx").write_bytes(data)
    with pytest.raises(DamagedArtifactError, match=r"head\.onnx"):
        freeze_artifact(folder, "cpu", "1.0.0", out=tmp_path / "x.atlas")
    assert not (tmp_path / "x.atlas").exists()


@pytest.mark.parametrize("version", ["1", "1.0", "01.0.0", "1.0.0-rc1", "v1.0.0", "", "1.0.0\n"])
def test_versions(verified: Path, tmp_path: Path, version: str):
    with pytest.raises(InputError, match=r"MAJOR\.MINOR\.PATCH"):
        freeze_artifact(verified, "cpu", version, out=tmp_path)


# --- what goes in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identifier", SPDX)
def test_licence_texts(folder: Path, identifier: str):
    source = {"repo": "openai/whisper-tiny", "revision": "abc123", "licence": identifier}
    content = open_artifact(with_source(folder, **source)).content
    licence = licence_of(content)
    text = licence_text(content, licence)
    assert "openai/whisper-tiny (https://huggingface.co/openai/whisper-tiny), revision abc123" in text
    assert SPDX[identifier] in text
    phrase = {
        "apache-2.0": "Grant of Patent License",
        "mit": "Copyright (c) openai\n\nMIT License",
        "cc-by-4.0": "Section 3 -- License Conditions",
    }
    assert phrase[identifier] in text


def test_the_card_shows_the_numbers_of_the_results(verified: Path, tmp_path: Path):
    frozen = freeze_artifact(verified, "npu", "1.0.0", out=tmp_path, allowed=["other-device"])
    text = card_of(frozen, tmp_path / "box").read_text()
    front = text.split("---")[1]
    for line in ("license: apache-2.0", "hardware: NPU", "  - NPU", "  - Ascend", "  - ascend-npu"):
        assert line in front.splitlines()
    assert "#+NPU" in text.splitlines()
    assert "Not run on an NPU." in text
    accuracy = json.loads((verified / "results" / "accuracy.json").read_bytes())
    for engine in accuracy["engines"]:
        for gate in engine["gates"]:
            assert (f"| {gate['name']} | {gate['value']:.3g} |" in text) or engine["engine"] == "onnxruntime"
    performance = json.loads((verified / "results" / "performance.json").read_bytes())
    timed = next(entry for entry in performance["engines"] if entry["engine"] == "torchscript")
    assert f"| {timed['end_to_end']['rtf']:.4f} |" in text
    for name in ("accuracy", "performance", "inference", "env_info"):
        there = tmp_path / "box" / "results" / f"{name}.json"
        assert there.read_bytes() == (verified / "results" / f"{name}.json").read_bytes()


def test_a_simulated_device_is_shown_and_has_no_times(folder: Path, tmp_path: Path):
    for name in ("accuracy", "performance"):
        path = folder / "results" / f"{name}.json"
        raw = json.loads(path.read_bytes()) | {"simulated": True, "device": "npu:0"}
        raw["engines"] = [entry | {"simulated": True, "device": "npu:0"} for entry in raw["engines"]]
        path.write_text(json.dumps(raw))
    frozen = freeze_artifact(folder, "npu", "1.0.0", out=tmp_path)
    assert frozen.manifest.verification is not None
    assert frozen.manifest.verification.simulated
    text = card_of(frozen, tmp_path / "box").read_text()
    assert "a simulated device" in text
    assert "Not run: a simulated device has no times." in text
    assert "Not run on an NPU." in text


def test_the_bill_of_materials_is_valid_and_names_every_file(verified: Path, tmp_path: Path):
    frozen = freeze_artifact(verified, "npu", "1.0.0", out=tmp_path, allowed=["other-device"])
    manifest = unpacked(frozen.path, tmp_path / "box")
    text = (tmp_path / "box" / "bom.cdx.json").read_text()
    validate(text)
    document = json.loads(text)
    files = {c["name"]: c["hashes"][0]["content"] for c in document["components"] if c["type"] == "file"}
    expected = {path: entry.sha256 for path, entry in manifest.files.items() if path != "bom.cdx.json"}
    assert files == expected
    libraries = {c["name"] for c in document["components"] if c["type"] == "library"}
    assert libraries == {"torch", "torch-npu"}
    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {metric["type"] for metric in metrics} >= {"structure.relative_l2", "task.events"}


def test_an_invalid_bill_of_materials_is_caught(verified: Path, tmp_path: Path):
    unpacked(freeze_artifact(verified, "cpu", "1.0.0", out=tmp_path).path, tmp_path / "box")
    document = json.loads((tmp_path / "box" / "bom.cdx.json").read_text())
    document["metadata"]["component"]["modelCard"]["colour"] = "blue"
    with pytest.raises(InputError, match="colour"):
        validate(json.dumps(document))


# --- the same bytes, or nothing ---------------------------------------------------------------------------------------


def command(*arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "atlasport", *arguments]


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(verified: Path, tmp_path: Path, keys: tuple[Path, Path]):
    files = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.atlas"
        options = ("--profile", "npu", "--version", "1.0.0", "--key", keys[0], "--out", out, "--allow-other-device")
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command("freeze", verified, *options), env=environment, check=True, capture_output=True)
        files.append(out.read_bytes())
    assert files[0] == files[1]


def test_another_export_of_the_same_content_gives_the_same_bundle(folder: Path, tmp_path: Path):
    """When and where it was exported is not in the bundle."""
    first = freeze_artifact(folder, "cpu", "1.0.0", out=tmp_path / "1.atlas")
    manifest = open_artifact(folder).manifest
    record = manifest.export.model_copy(update={"created": "2001-01-01T00:00:00+00:00", "host": "elsewhere"})
    (folder / MANIFEST_NAME).write_bytes(Manifest.create(manifest.content, record).to_bytes())
    second = freeze_artifact(folder, "cpu", "1.0.0", out=tmp_path / "2.atlas")
    assert first.path.read_bytes() == second.path.read_bytes()


@pytest.mark.slow
def test_kill_9_of_freeze_leaves_the_old_bundle_or_the_new_one(verified: Path, tmp_path: Path):
    out = tmp_path / "out" / "x.atlas"
    whole = [freeze_artifact(verified, "cpu", f"1.0.{patch}", out=out).path.read_bytes() for patch in (1, 0)]
    frozen = command("freeze", verified, "--profile", "cpu", "--version", "1.0.1", "--out", out)
    began = time.perf_counter()
    subprocess.run(frozen, stdout=subprocess.DEVNULL, check=True)
    whole_s = time.perf_counter() - began
    assert out.read_bytes() == whole[0]
    rng = random.Random(0)
    killed = 0
    for _ in range(40):
        if killed == 10:
            break
        out.write_bytes(whole[1])
        process = subprocess.Popen(frozen, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, whole_s))
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            killed += 1
        else:  # the first one was slow
            whole_s *= 0.8
        assert out.read_bytes() in whole
    assert killed == 10
    freeze_artifact(verified, "cpu", "1.0.1", out=out)
    assert [path.name for path in out.parent.iterdir()] == ["x.atlas"]


def test_evidence_of_nothing(tmp_path: Path, verified: Path):
    artifact = Artifact(tmp_path, open_artifact(verified).manifest)
    assert read_evidence(artifact, "cpu", ("onnxruntime",)).files == {}
