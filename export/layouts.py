"""Folders in the layout of other packages, which load them as they load their own models."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from export.families import FAMILIES, family_named, open_model
from export.family import FamilyModel, Layouts
from export.publish import check_space, export_errors, publish, workspace
from export.weights import Weights, resolve_weights
from export.writers.weights import write_weights
from runtime.artifact import sha256_of
from runtime.errors import InputError

# Says where a folder comes from. No package reads it, and no artifact has it.
RECORD_NAME = "layout.json"
_PACKAGES = ("atlasport", "onnx", "onnxscript", "torch")
# Graphs and vocabulary.
_SMALL_FILES = 20e6


def layouts_of(family: str) -> Layouts[Any]:
    """Return the layouts that a family's models are written in."""
    layouts = family_named(family).layouts
    return Layouts(lambda _weights, _model: None, {}) if layouts is None else layouts()


def export_layout(
    model: str,
    layout: str,
    *,
    weights: str | None = None,
    out: Path = Path("artifacts"),
    progress: Callable[[str], None] = lambda _stage: None,
) -> Path:
    """Export a model to `<out>/<model>/layout-<layout>` for another package, in float32.

    Parameters
    ----------
    model, weights, out
        As for `export_model`.
    layout : str
        A name of the family's layouts.
    progress : Callable[[str], None]
        Told the name of each stage when it begins.

    Returns
    -------
    Path
        The folder: the package's files, and layout.json, which says what they were made from.

    Raises
    ------
    InputError
        Unknown layout or model, a family or a network that the package does not know, or a damaged checkpoint.
    EnvironmentNotFitError
        The hub cannot be reached, or the disk cannot be written.

    """
    owners = {family: layouts_of(family).by_name for family in FAMILIES}
    known = list(dict.fromkeys(name for layouts in owners.values() for name in layouts))
    if layout not in known:
        raise InputError(f"layout {layout!r}: expected {' or '.join(known)}")
    resolved = resolve_weights(model, weights)
    family, opened = open_model(resolved)
    if layout not in owners[family]:
        fitting = " or ".join(name for name, layouts in owners.items() if layout in layouts)
        raise InputError(
            f"{model}: layout {layout} expects a model of {fitting}, found {family}; export it without one"
        )
    chosen = owners[family][layout]
    source = layouts_of(family).source(resolved, opened)
    chosen.check(source)
    target = out / model / f"layout-{layout}"
    with export_errors(out), workspace(target, RECORD_NAME) as folder:
        check_space(folder, int(_SMALL_FILES + sum(info.length for info in opened.tensors.values())))
        progress("weights")
        write_weights(opened, torch.float32, folder / chosen.weights)
        progress("onnx")
        chosen.write(source, folder)
        progress("record")
        _write_record(folder, layout, resolved, opened)
        publish(folder, target)
    return target


def _write_record(folder: Path, layout: str, weights: Weights, model: FamilyModel) -> None:
    files = {path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    record = {
        "layout": layout,
        "model": weights.model,
        "source": {
            "weights": "trained" if model.seed is None else "random",
            "origin": weights.origin,
            "repo": weights.repo,
            "revision": weights.revision,
            "licence": weights.licence,
            "files": {path.name: sha256_of(path) for path in model.source_files},
        },
        "versions": {name: version(name) for name in _PACKAGES},
        "files": files,
    }
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
