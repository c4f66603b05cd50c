"""Bundles of sed-pocket, frozen once."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import numpy as np
import pytest
from box_bundles import MODEL, Keys, changed
from safetensors.numpy import load_file, save_file

from export.freeze.pipeline import SigningKey, freeze_artifact
from runtime.box.install import Trust, install
from runtime.box.root import Box
from runtime.box.switch import activate
from runtime.bundle.signing import generate_key
from runtime.manifest import MANIFEST_NAME, FileEntry, Manifest


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    return Keys(*generate_key(folder / "own"), *generate_key(folder / "other"))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, sed_artifact: Path, keys: Keys) -> Path:
    """sed-pocket 1.0.0, profile cpu, signed."""
    return _freeze(sed_artifact, tmp_path_factory.mktemp("bundle"), keys)


@pytest.fixture(scope="session")
def newer(bundle: Path, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as 1.1.0."""
    return changed(bundle, tmp_path_factory.mktemp("newer") / "newer.atlas", keys.private, version="1.1.0")


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, bundle: Path, newer: Path, keys: Keys) -> Path:
    """A box with 1.1.0 active, signed, and 1.0.0 before it."""
    root = tmp_path_factory.mktemp("original") / "box"
    for path in (bundle, newer):
        activate(root, MODEL, install(path, root, Trust(keys.public)).manifest.version)
    return root


@pytest.fixture
def box(tmp_path: Path, original: Path) -> Box:
    """A copy of it."""
    subprocess.run(["cp", "-a", original, tmp_path / "box"], check=True)
    return Box(tmp_path / "box")


@pytest.fixture(scope="session")
def wrong(sed_artifact: Path, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles 2.0.0 that install and must fail their self-test: a gain of 1.1 in the golden logits, a lost event,
    a graph that no engine opens, inputs that it does not take."""
    folder = tmp_path_factory.mktemp("wrong")
    louder = _rewritten(sed_artifact, folder / "gain" / "sed-pocket" / "fp32", gain=1.1)
    deaf = _rewritten(sed_artifact, folder / "event" / "sed-pocket" / "fp32", gain=1.0, lose_event=True)
    broken = _rewritten(sed_artifact, folder / "graph" / "sed-pocket" / "fp32", gain=1.0, graph=b"no graph")
    narrow = _rewritten(sed_artifact, folder / "shape" / "sed-pocket" / "fp32", gain=1.0, cut_inputs=True)
    return {
        "graph": _freeze(broken, folder / "graph", keys, "2.0.0"),
        "shape": _freeze(narrow, folder / "shape", keys, "2.0.0"),
        "gain": _freeze(louder, folder / "gain", keys, "2.0.0"),
        "event": _freeze(deaf, folder / "event", keys, "2.0.0"),
    }


def _freeze(artifact: Path, out: Path, keys: Keys, version: str = "1.0.0") -> Path:
    return freeze_artifact(
        artifact,
        "cpu",
        version,
        out=out / f"{version}.atlas",
        key=SigningKey(keys.private),
        allowed=("unverified",),
    ).path


def _rewritten(
    artifact: Path, target: Path, *, gain: float, lose_event: bool = False, graph: bytes = b"", cut_inputs: bool = False
) -> Path:
    """Copy an artifact with other golden outputs: its files are whole, only its graphs do not fit them."""
    target.mkdir(parents=True)
    manifest = Manifest.from_bytes((artifact / MANIFEST_NAME).read_bytes(), "test")
    content = manifest.content
    for name in content.files:
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes((artifact / name).read_bytes())
    outputs = {o.key for case in content.cases if case.graph == "head" for o in case.outputs.values()}
    golden = target / "golden.safetensors"
    arrays = load_file(golden)
    if cut_inputs:
        inputs = {i.key for case in content.cases if case.graph == "head" for i in case.inputs.values()}
        arrays |= {key: np.ascontiguousarray(arrays[key][..., 1:]) for key in inputs}
    save_file({key: a * np.float32(gain) if key in outputs else a for key, a in arrays.items()}, golden)
    if graph:
        (target / "head.onnx").write_bytes(graph)
    entries = {}
    for name in (golden.name, "head.onnx"):
        data = (target / name).read_bytes()
        entries[name] = FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    first = content.recordings[0]
    if lose_event:
        first = first.model_copy(update={"result": {**first.result, "events": first.result["events"][1:]}})
    content = content.model_copy(
        update={"files": {**content.files, **entries}, "recordings": (first, *content.recordings[1:])}
    )
    (target / MANIFEST_NAME).write_bytes(Manifest.create(content, manifest.export).to_bytes())
    return target


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of recordings to serve, and one for their results, which is not there yet."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in", tmp_path / "out"
