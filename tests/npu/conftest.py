"""The simulated NPU, built once, what lends it to a process under test, and artifacts in the formats that it reads."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ctc_checkpoints import ctc_nemo
from filelock import FileLock
from npu_simulator import ROOT, SITE, simulated_npu
from npu_simulator.build import built_library

from export.families import open_model
from export.weights import resolve_weights
from export.writers.pt2 import write_pt2
from export.writers.torchscript import write_torchscript
from runtime.artifact import open_artifact
from runtime.manifest import MANIFEST_NAME, FileEntry, Manifest


@pytest.fixture(scope="session")
def simulator_library() -> Path:
    """The simulated device's C++ part; compiled on first use, in a minute or two."""
    return built_library()


@pytest.fixture
def lend_npu(simulator_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that gives this test's worker processes simulated NPUs; it returns the folder of their reports."""
    assert simulator_library.exists()

    def lend(*, soc: str = "910B4", devices: int = 1, control: Mapping[str, Any] | None = None) -> Path:
        for name, value in simulated_npu(tmp_path, soc=soc, devices=devices, control=control).items():
            monkeypatch.setenv(name, value)
        # Here it is only looked for, never imported.
        monkeypatch.syspath_prepend(str(SITE))
        return tmp_path

    return lend


@pytest.fixture(scope="session")
def npu_pocket(shared_folder: Path, pocket_artifact: Path, pocket_checkpoint: Path) -> Path:
    """whisper-pocket in all three formats. Read only."""
    return _with_all_formats(shared_folder / "npu" / "whisper-pocket", pocket_artifact, pocket_checkpoint)


@pytest.fixture(scope="session")
def npu_random(shared_folder: Path, english_artifact: Path, english_checkpoint: Path) -> Path:
    """A random checkpoint of two layers in all three formats. Read only."""
    return _with_all_formats(shared_folder / "npu" / "whisper-english", english_artifact, english_checkpoint)


@pytest.fixture(scope="session")
def npu_sed(shared_folder: Path, sed_artifact: Path) -> Path:
    """sed-pocket in all three formats. Read only."""
    return _with_all_formats(shared_folder / "npu" / "sed-pocket", sed_artifact, ROOT / "pocket" / "sed-pocket")


@pytest.fixture(scope="session")
def npu_parakeet(shared_folder: Path, parakeet_artifact: Path, parakeet_checkpoint: Path) -> Path:
    """parakeet-pocket in all three formats. Read only."""
    return _with_all_formats(shared_folder / "npu" / "parakeet-pocket", parakeet_artifact, parakeet_checkpoint)


@pytest.fixture(scope="session")
def npu_ctc(shared_folder: Path, ctc_artifact: Path) -> Path:
    """A random CTC head over parakeet-pocket's encoder in all three formats. Read only."""
    alone = ctc_nemo(shared_folder / "ctc.nemo")
    return _with_all_formats(shared_folder / "npu" / "ctc-random", ctc_artifact, alone)


@pytest.fixture(scope="session")
def npu_granite(shared_folder: Path, granite_artifact: Path, granite_checkpoint: Path) -> Path:
    """A random Granite Speech of two layers in all three formats. Read only."""
    return _with_all_formats(shared_folder / "npu" / "granite-random", granite_artifact, granite_checkpoint)


def _with_all_formats(target: Path, artifact: Path, checkpoint: Path) -> Path:
    """Copy an artifact and add TorchScript and .pt2: a fraction of an export's cost, most of which is golden output."""
    target.parent.mkdir(exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if target.exists():
            return target
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(artifact, part)
        manifest = open_artifact(part).manifest
        _, model = open_model(resolve_weights(manifest.content.model, str(checkpoint)))
        graphs = model.graphs(torch.float32, part / "weights.safetensors")
        written = {"pt2": write_pt2(graphs, part)}
        if not any("torchscript" in graph.files for graph in manifest.content.graphs.values()):
            written["torchscript"] = write_torchscript(graphs, part / "model.ts")
        entries = dict(manifest.content.files)
        for name in {file for files in written.values() for file in files.values()}:
            data = (part / name).read_bytes()
            entries[name] = FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        described = {
            name: graph.model_copy(
                update={"files": graph.files | {kind: files[name] for kind, files in written.items()}}
            )
            for name, graph in manifest.content.graphs.items()
        }
        content = manifest.content.model_copy(update={"files": entries, "graphs": described})
        (part / MANIFEST_NAME).write_bytes(Manifest.create(content, manifest.export).to_bytes())
        part.rename(target)
        return target
