"""Where an engine leaves the reference: faults are put into files, and what is named is where they are."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors import safe_open

from runtime.artifact import Artifact, open_artifact
from runtime.engines import open_engine
from runtime.errors import ExitCode
from runtime.manifest import MANIFEST_NAME, FileEntry, Manifest
from verify.diverged import Divergence
from verify.divergence import locate as locating
from verify.divergence.locate import locate
from verify.report import REPORT_NAME
from verify.run import verify_artifact

ROOT = Path(__file__).resolve().parents[2]
load: Any = torch.jit.load


@pytest.fixture
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    """A copy of an artifact, opened before it was damaged."""
    good = open_artifact(request.getfixturevalue(request.param))
    return replace(good, path=Path(shutil.copytree(good.path, tmp_path / "damaged")), identity=None)


def searched(artifact: Artifact, engine: str, case: str, reference: Artifact) -> Divergence:
    form = "onnx" if engine == "onnxruntime" else "torchscript"
    (chosen,) = (found for found in artifact.content.cases if found.name == case)
    open_again = partial(open_engine, name=engine, device="cpu", threads=1)
    return locate(artifact, form, chosen, open_again, reference)


def scale(folder: Path, parameter: str, gain: float) -> None:
    """Give a parameter in an artifact's TorchScript file a gain."""
    script = load(folder / "model.ts", map_location="cpu")
    attribute = parameter.replace(".", "__")
    script._c.setattr(attribute, script._c.getattr(attribute) * gain)
    script.save(str(folder / "model.ts"))


FAMILIES = [
    ("pocket_artifact", "speech", "encoder.layers.1.fc2.weight"),
    ("pocket_artifact", "step_middle", "decoder.layers.1.self_attn.v_proj.weight"),
    ("sed_artifact", "speech", "fc_audioset.weight"),
    ("parakeet_artifact", "speech", "encoder.layers.1.conv.pointwise_conv1.weight"),
]


@pytest.mark.parametrize(("damaged", "case", "parameter"), FAMILIES, indirect=["damaged"])
def test_a_gain_of_one_layer_is_found_in_it(damaged: Artifact, case: str, parameter: str):
    """Of 1e-4; before it, everything is right."""
    reference = open_artifact(damaged.path)
    assert searched(damaged, "torchscript", case, reference).first is None
    scale(damaged.path, parameter, 1 + 1e-4)
    found = searched(damaged, "torchscript", case, reference)
    assert found.first is not None
    assert found.first.module == parameter.rpartition(".")[0]
    assert found.first.local == pytest.approx(1e-4, rel=0.2)
    assert parameter.rpartition(".")[0] in found.summary
    # The next one is right on what it is given, and far off all the same.
    behind = found.places[found.places.index(found.first) + 1 :]
    assert not any(place.wrong for place in behind)
    assert not behind or max(place.total for place in behind) > 2e-5
    assert {path.name for path in damaged.path.iterdir()} == {path.name for path in reference.path.iterdir()}


@pytest.mark.parametrize("damaged", ["pocket_artifact"], indirect=True)
def test_a_few_at_a_time_are_the_same(damaged: Artifact, monkeypatch: pytest.MonkeyPatch):
    scale(damaged.path, "decoder.layers.0.fc1.weight", 1.01)
    whole = searched(damaged, "torchscript", "step_middle", damaged)
    monkeypatch.setattr(locating, "_BYTES", 10_000)
    groups: list[int] = []
    monkeypatch.setattr(locating._Search, "_engine", _counted(locating._Search._engine, groups))
    assert searched(damaged, "torchscript", "step_middle", damaged) == whole
    assert len(groups) > 5
    assert max(groups) < len(whole.places) / 2


def _counted(fetch: Callable[..., Any], groups: list[int]) -> Callable[..., Any]:
    def counted(self: Any, values: list[str]) -> Any:
        groups.append(len(values))
        return fetch(self, values)

    return counted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damaged", "cases"),
    [
        ("pocket_artifact", ("speech", "step_middle")),
        ("sed_artifact", ("speech_gates", "speech")),
        ("parakeet_artifact", ("step_middle", "join_middle")),
    ],
    indirect=["damaged"],
)
def test_every_layer_is_named_right(damaged: Artifact, cases: tuple[str, ...]):
    reference = open_artifact(damaged.path)
    whole = (damaged.path / "model.ts").read_bytes()
    missed, tried = [], 0
    with safe_open(str(damaged.path / "weights.safetensors"), framework="np") as file:
        names = sorted(file.keys())
    for case in cases:
        graph = next(found.graph for found in damaged.content.cases if found.name == case)
        code = load(damaged.path / "model.ts", map_location="cpu")._c._get_method(graph).code
        for name in names:
            if f"self.{name.replace('.', '__')}" not in code or name.endswith("bias"):
                continue
            scale(damaged.path, name, 1 + 1e-3)
            first = searched(damaged, "torchscript", case, reference).first
            tried += 1
            if first is None or first.module != name.rpartition(".")[0]:
                missed.append((case, name, first and first.label))
            (damaged.path / "model.ts").write_bytes(whole)
    assert tried > 5
    assert len(missed) <= 0.05 * tried, missed


def _epsilon(model: onnx.ModelProto) -> None:
    norm = [node for node in model.graph.node if node.op_type == "LayerNormalization"][1]
    (value,) = (attribute for attribute in norm.attribute if attribute.name == "epsilon")
    value.f = 1e-3


def _axis(model: onnx.ModelProto) -> None:
    softmax = [node for node in model.graph.node if node.op_type == "Softmax"][1]
    softmax.attribute[0].i = 1


@pytest.mark.parametrize(
    ("change", "module", "operator"),
    [
        (_epsilon, "decoder.layers.0.encoder_attn_layer_norm", "LayerNormalization"),
        (_axis, "decoder.layers.0.encoder_attn", "Softmax"),
    ],
)
@pytest.mark.parametrize("damaged", ["pocket_artifact"], indirect=True)
def test_an_operator_of_an_onnx_graph_is_found(
    damaged: Artifact, change: Callable[[onnx.ModelProto], None], module: str, operator: str, pocket_artifact: Path
):
    model = onnx.load(str(damaged.path / "step.onnx"), load_external_data=False)
    change(model)
    onnx.save(model, str(damaged.path / "step.onnx"))
    first = searched(damaged, "onnxruntime", "step_middle", open_artifact(pocket_artifact)).first
    assert first is not None
    assert (first.module, operator in first.operator) == (module, True)


def entered(folder: Path, name: str) -> None:
    """Write a file's new hash into the manifest: an export that was wrong, not one that is damaged."""
    manifest = Manifest.from_bytes((folder / MANIFEST_NAME).read_bytes(), "copy")
    data = (folder / name).read_bytes()
    entry = FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    content = manifest.content.model_copy(update={"files": {**manifest.content.files, name: entry}})
    (folder / MANIFEST_NAME).write_bytes(Manifest.create(content, manifest.export).to_bytes())


@pytest.mark.parametrize("source", [None, "pocket/whisper-pocket"])
def test_verify_says_it_and_the_report_shows_it(pocket_artifact: Path, tmp_path: Path, source: str | None):
    folder = Path(shutil.copytree(pocket_artifact, tmp_path / "whisper-pocket" / "fp32"))
    scale(folder, "decoder.layers.0.fc1.weight", 1 + 1e-3)
    entered(folder, "model.ts")
    command = ["verify", folder, "--engine", "torchscript", "--cases", "step_*,prefill_3", "--runs", "0", "--locate"]
    command += ["--source", source] if source else []
    done = subprocess.run(
        [sys.executable, "-m", "atlasport", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stdout.splitlines() if "wrong in decoder.layers.0.fc1, Gemm" in line]
    assert len(lines) == 2  # of step, and of prefill_4
    (engine,) = json.loads((folder / "results" / "accuracy.json").read_text())["engines"]
    assert {divergence["graph"] for divergence in engine["divergences"]} == {"step", "prefill_4"}
    page = (folder / REPORT_NAME).read_text()
    assert "Where it diverges" in page
    assert "decoder.layers.0.fc1" in page
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_the_onnx_graph_is_no_reference_for_itself(pocket_artifact: Path, tmp_path: Path):
    folder = Path(shutil.copytree(pocket_artifact, tmp_path / "fp32"))
    said: list[str] = []
    found = verify_artifact(
        folder, engines=["onnxruntime"], cases=["step_4"], runs=0, threads=1, locate=True, progress=said.append
    )
    assert found.results.accuracy.engines[0].divergences == ()
    (line,) = [line for line in said if "--locate" in line]
    assert "name the checkpoint by --source" in line


def test_a_box_without_the_packages_of_export_verifies(sed_artifact: Path, tmp_path: Path):
    folder = shutil.copytree(sed_artifact, tmp_path / "artifact")
    packages = ("onnx", "onnxscript", "onnx_ir", "transformers", "huggingface_hub")
    absent = f"import sys; sys.modules.update(dict.fromkeys({packages}))"
    code = f"{absent}; from atlasport.cli import main; sys.exit(main())"
    verify = [sys.executable, "-c", code, "verify", str(folder), "--cases", "silence", "--runs", "0"]
    done = subprocess.run(verify, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == ExitCode.OK, done.stderr
    done = subprocess.run([*verify, "--locate"], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert done.stderr == "atlasport: --locate: needs onnx and onnxruntime, found no onnx; pip install onnx\n"
