"""Folders in the layout of other packages, which load them as they load their own models.

Both packages compute features themselves and decode by a loop of their own, so that only the network is exported: as
NeMo exports it, with the joint net's projection of frames in the decoder's graphs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from export.families import FamilyModel, open_model
from export.layouts import onnx_asr, sherpa_onnx
from export.layouts.network import NetworkSource
from export.pipeline import write_weights
from export.publish import check_space, export_errors, publish, workspace
from export.weights import Weights, resolve_weights
from runtime.artifact import sha256_of
from runtime.errors import InputError
from runtime.families.parakeet_tdt.settings import ParakeetDims, ParakeetFrontend, ParakeetSettings
from runtime.families.parakeet_tdt.tokenizer import ParakeetTokenizer

FAMILY = "parakeet_tdt"
# Says where a folder comes from. No package reads it, and no artifact has it.
RECORD_NAME = "layout.json"
_PACKAGES = ("atlasport", "onnx", "onnxscript", "torch")
# Graphs and vocabulary.
_SMALL_FILES = 20e6


@dataclass(frozen=True)
class Layout:
    """What a package loads.

    `weights` is the file of all parameters, to which the graphs refer; `check` raises InputError where the package
    cannot run the network as it was trained; `write` writes graphs and side files into the folder of the weights.
    """

    weights: str
    check: Callable[[NetworkSource], None]
    write: Callable[[NetworkSource, Path], None]


LAYOUTS: Mapping[str, Layout] = {
    "onnx-asr": Layout(onnx_asr.WEIGHTS_NAME, onnx_asr.check, onnx_asr.write),
    "sherpa-onnx": Layout(sherpa_onnx.WEIGHTS_NAME, sherpa_onnx.check, sherpa_onnx.write),
}


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
        A name of LAYOUTS.
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
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r}: expected {' or '.join(LAYOUTS)}")
    chosen = LAYOUTS[layout]
    resolved = resolve_weights(model, weights)
    family, opened = open_model(resolved)
    if family != FAMILY:
        raise InputError(f"{model}: layout {layout} expects a model of {FAMILY}, found {family}; export it without one")
    source = _network_source(resolved, opened)
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


def _network_source(weights: Weights, model: FamilyModel) -> NetworkSource:
    dims, settings = ParakeetDims(**model.dims), ParakeetSettings(**model.settings)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, settings.tokenizer_file)
        file.write_bytes(model.side_files[settings.tokenizer_file])
        pieces = ParakeetTokenizer(file, dims.n_vocab).pieces
    frontend = ParakeetFrontend(**model.frontend)
    return NetworkSource(dims, frontend, settings, pieces, origin=weights.origin, licence=weights.licence)


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
