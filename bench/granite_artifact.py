"""Writes what the Granite Speech benchmark runs, without the golden outputs of an export.

They need several times as long as the benchmark itself at full size, and their reference run is in float32, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from export.families import family_named, open_model
from export.floors import unmeasured
from export.pipeline import WEIGHTS_NAME
from export.weights import Weights, resolve_weights
from export.writers.onnx import write_onnx
from export.writers.weights import write_weights
from runtime.artifact import sha256_of
from runtime.manifest import MANIFEST_NAME, Content, ExportRecord, FileEntry, Manifest, Source, SourceParity

# In float32 all 40 layers of a full size take 6.5 GB, once as the mapped file and once as ONNX Runtime lays them out.
LM_LAYERS = 4


def write_artifact(
    model: str, lm_layers: int, folder: Path, progress: Callable[[str], None] = lambda _stage: None
) -> Path:
    """Write a float32 artifact of ONNX graphs with random weights into `folder`, which is made.

    Parameters
    ----------
    model : str
        A name of the registry, of the family granite_speech.
    lm_layers : int
        Layers of its language model; the model's own count where it has no more.
    folder : Path
        Where the files go.
    progress : callable
        Told the name of each stage when it begins.

    """
    weights = _with_layers(resolve_weights(model, "random"), lm_layers)
    family, opened = open_model(weights)
    folder.mkdir(parents=True)
    progress("weights")
    write_weights(opened, torch.float32, folder / WEIGHTS_NAME)
    for name, data in opened.side_files.items():
        (folder / name).write_bytes(data)
    progress("onnx")
    definitions = opened.graphs(torch.float32, None)
    files = write_onnx(definitions, folder / WEIGHTS_NAME, folder)
    content = Content(
        model=model,
        family=family,
        variant="fp32",
        task=family_named(family).task,
        source=Source(
            weights="random",
            origin=weights.origin,
            repo=None,
            revision=None,
            seed=opened.seed,
            licence=weights.licence,
            files={},
        ),
        dims=opened.dims,
        frontend=opened.frontend,
        settings=opened.settings,
        graphs={name: graph.signature({"onnx": files[name]}) for name, graph in definitions.items()},
        cases=(),
        teacher_forced=(),
        recordings=(),
        parity=SourceParity(implementation="none", limit_relative_l2=0.0, outputs=(), results_equal={}),
        tolerances=unmeasured("fp32"),
        versions={name: version(name) for name in ("torch", "onnx", "onnxruntime")},
        files={
            path.name: FileEntry(size=path.stat().st_size, sha256=sha256_of(path)) for path in sorted(folder.iterdir())
        },
    )
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    manifest = Manifest.create(content, ExportRecord(created=created, host="", stages=()))
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return folder


def _with_layers(weights: Weights, lm_layers: int) -> Weights:
    """Return the same random weights with at most so many layers of the language model."""
    assert weights.entry is not None
    dims = dict(weights.entry.dims)
    dims["lm_layers"] = min(dims["lm_layers"], lm_layers)
    return replace(weights, entry=replace(weights.entry, dims=dims))
