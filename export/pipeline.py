"""Export: weights, graphs in each format, golden outputs, comparison with the source, manifest; then one move."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import load_file

from export.costs import CostMeter
from export.families import family_named, open_model
from export.family import FamilyModel
from export.floors import Measured, add_float64, add_source, set_pools, unmeasured
from export.golden import AUDIO_FOLDER, Clip, Golden
from export.other_kernels import Job, measure_elsewhere
from export.parity import source_parity
from export.publish import check_space, export_errors, publish, workspace
from export.recordings import SAMPLES, check_texts, not_judged, read_clips
from export.vad import VAD_TAKEN, vad_files
from export.weights import Weights, resolve_weights
from export.writers.weights import write_weights
from runtime.artifact import GOLDEN_NAME, Artifact, sha256_of
from runtime.engines.base import Array
from runtime.engines.onnxruntime import OnnxRuntimeEngine
from runtime.errors import InputError
from runtime.manifest import (
    MANIFEST_NAME,
    Case,
    Content,
    ExportRecord,
    FileEntry,
    Format,
    Graph,
    Manifest,
    Source,
    SourceParity,
    Tolerances,
    Variant,
)

WEIGHTS_NAME = "weights.safetensors"
DTYPES: dict[Variant, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_PACKAGES = ("atlasport", "numpy", "onnx", "onnxruntime", "onnxscript", "torch", "transformers")
# Graphs without weights, golden arrays, recordings.
_SMALL_FILES = 80e6


@dataclass(frozen=True)
class _Plan:
    """What is exported."""

    weights: Weights
    family: str
    model: FamilyModel
    source: Source
    variant: Variant
    formats: tuple[Format, ...]
    clips: tuple[Clip, ...]
    vad: Mapping[str, bytes]


def export_model(
    model: str,
    *,
    weights: str | None = None,
    variant: Variant = "fp32",
    formats: Sequence[Format] = ("onnx", "torchscript"),
    out: Path = Path("artifacts"),
    recordings: Sequence[Path] | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
    head: str | None = None,
    vad: bool = False,
    progress: Callable[[str], None] = lambda _stage: None,
) -> Path:
    """Export a model to `<out>/<model>/<variant>`, replacing an artifact that is there.

    Parameters
    ----------
    model : str
        A name of the registry, or any name where `weights` is a checkpoint.
    weights : str or None
        A local folder, a hub id, `random`, or None for what the registry says.
    variant : {"fp32", "fp16", "bf16"}
        Precision of weights, hidden states and kv cache.
    formats : Sequence[Format]
        Formats of the graphs.
    out : Path
        Where artifacts are.
    recordings : Sequence[Path] or None
        Audio files, or folders of them, that become part of the artifact, each with the transcript that lies beside
        it (export/recordings.py); None for the registry's samples.
    tokenizer, base, head : str or None
        See `resolve_weights`.
    vad : bool
        Put silero's VAD into the artifact of a model for speech; it comes from a package index.
    progress : Callable[[str], None]
        Told the name of each stage when it begins.

    Returns
    -------
    Path
        The artifact's folder. Its manifest's `export.stages` say what each stage cost.

    Raises
    ------
    InputError
        Unknown model, or a missing, partial, damaged or foreign checkpoint.
    GateError
        The graphs do not compute what the source implementation does.
    EnvironmentNotFitError
        The hub cannot be reached, or the disk cannot be written.

    """
    if not formats:
        raise InputError("formats: expected at least one of onnx, torchscript, pt2, found none")
    resolved = resolve_weights(model, weights, tokenizer=tokenizer, base=base, head=head)
    clips = None if recordings is None else read_clips(recordings)
    family, opened = open_model(resolved)
    if clips is None:
        names = resolved.entry.recordings if resolved.entry else opened.recordings
        # Random weights show sizes and speed.
        clips = read_clips([SAMPLES / name for name in (names if resolved.path else names[:1])])
    source = _source(resolved, opened)
    plan = _Plan(resolved, family, opened, source, variant, tuple(formats), clips, vad_files(family) if vad else {})
    target = out / model / variant
    with export_errors(out), workspace(target) as folder:
        check_space(folder, _bytes_needed(plan))
        _write_artifact(plan, folder, progress)
        publish(folder, target)
    return target


def parse_formats(text: str) -> tuple[Format, ...]:
    """Return the formats of a comma-separated list, each once.

    Raises
    ------
    InputError
        The list is empty or names something else.

    """
    names = dict.fromkeys(name.strip() for name in text.split(","))
    formats = tuple(known for known in get_args(Format) if known in names)
    unknown = [name for name in names if name not in formats]
    if unknown:
        raise InputError(f"formats {text!r}: expected some of {', '.join(get_args(Format))}, found {unknown[0]!r}")
    return formats


def _write_artifact(plan: _Plan, folder: Path, progress: Callable[[str], None]) -> None:
    """Write everything into an empty folder, the manifest last. Each stage frees what it used before the next."""
    meter = CostMeter(progress)
    graphs = _write_graphs(plan, plan.variant, plan.formats, folder, meter=meter)
    scratch = folder / "reference"
    if plan.variant == "fp32" and "onnx" in plan.formats:
        reference = _unfinished(plan, "fp32", graphs, folder)
    else:
        scratch.mkdir()
        reference = _unfinished(
            plan, "fp32", _write_graphs(plan, "fp32", ("onnx",), scratch, meter=meter, prefix="reference "), scratch
        )
    (folder / AUDIO_FOLDER).mkdir()
    for clip in plan.clips:
        shutil.copyfile(clip.path, folder / clip.file)
    with meter.stage("golden"):
        golden = _golden(plan, reference)
        golden.write(folder / GOLDEN_NAME)
    parity, tolerances = _compared(plan, graphs, golden, reference, arrays=folder / GOLDEN_NAME, meter=meter)
    check_texts(golden.recordings, f"{plan.weights.model} {plan.variant}")
    shutil.rmtree(scratch, ignore_errors=True)
    for name, data in plan.vad.items():
        (folder / name).write_bytes(data)
    with meter.stage("manifest"):
        content = _content(
            plan,
            plan.variant,
            graphs,
            files=_file_entries(folder),
            golden=golden,
            parity=parity,
            tolerances=tolerances,
        )
    record = ExportRecord(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        host=platform.node(),
        stages=tuple(meter.stages),
        taken=(_taken(plan), *plan.model.taken, *((VAD_TAKEN,) if plan.vad else ())),
        notes=plan.model.notes,
    )
    (folder / MANIFEST_NAME).write_bytes(Manifest.create(content, record).to_bytes())


def _compared(
    plan: _Plan, graphs: dict[str, Graph], golden: Golden, reference: Artifact, *, arrays: Path, meter: CostMeter
) -> tuple[SourceParity, Tolerances]:
    """Return how far golden is from the source, and the limits founded on what correct implementations differ by."""
    weights, dtype = reference.path / WEIGHTS_NAME, DTYPES[plan.variant]
    in_fp32 = {name for name, graph in graphs.items() if not graph.is_below_fp32}
    with meter.stage("source parity"):
        source = plan.model.source(weights)
        measured = Measured([source.implementation])

        def computed(case: Case, outputs: Mapping[str, Array]) -> None:
            if case.graph in in_fp32:
                measured.add(golden, case, outputs)

        where = f"{plan.weights.model} {plan.variant}"
        parity = source_parity(golden, source, plan.clips, where, computed)
    with meter.stage("noise floors"):
        add_source(measured, source, golden, graphs, dtype, fp32=False)
        del source
        if plan.weights.path is not None:  # random ones show sizes and speed: what the source is off by here will do
            if in_fp32:
                add_float64(measured, golden, graphs, plan.model.graphs(torch.float32, weights))
            job = Job(plan.weights, weights, arrays, golden.cases, golden.teacher_forced, graphs, dtype)
            measured.include(measure_elsewhere(job))
    return parity, measured.tolerances(plan.variant)


def _write_graphs(
    plan: _Plan, variant: Variant, formats: Sequence[Format], folder: Path, *, meter: CostMeter, prefix: str = ""
) -> dict[str, Graph]:
    """Write weights, side files and the graphs in each format; the stages' names begin with `prefix`."""
    dtype = DTYPES[variant]
    weights = folder / WEIGHTS_NAME
    with meter.stage(f"{prefix}weights"):
        write_weights(plan.model, dtype, weights)
        for name, data in plan.model.side_files.items():
            (folder / name).write_bytes(data)
    files: dict[Format, Mapping[str, str]] = {}
    for graph_format in formats:
        with meter.stage(f"{prefix}{graph_format}"):
            files[graph_format] = _WRITERS[graph_format](plan.model, dtype, weights)
    graphs = plan.model.graphs(dtype, None)
    return {name: graph.signature({f: files[f][name] for f in formats}) for name, graph in graphs.items()}


def _onnx(model: FamilyModel, dtype: torch.dtype, weights: Path) -> Mapping[str, str]:
    from export.writers.onnx import write_onnx

    return write_onnx(model.graphs(dtype, None), weights, weights.parent)


def _torchscript(model: FamilyModel, dtype: torch.dtype, weights: Path) -> Mapping[str, str]:
    from export.writers.torchscript import write_torchscript

    return write_torchscript(model.graphs(dtype, weights), weights.parent / "model.ts")


def _pt2(model: FamilyModel, dtype: torch.dtype, weights: Path) -> Mapping[str, str]:
    from export.writers.pt2 import write_pt2

    return write_pt2(model.graphs(dtype, weights), weights.parent)


_WRITERS: dict[Format, Callable[[FamilyModel, torch.dtype, Path], Mapping[str, str]]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
    "pt2": _pt2,
}


def _golden(plan: _Plan, reference: Artifact) -> Golden:
    # One thread: the reference does not depend on the number of cores. Lean: a private copy of the weights, laid out
    # for speed, would double the memory.
    weights = {name: tensor.numpy() for name, tensor in load_file(reference.path / WEIGHTS_NAME).items()}
    engine = OnnxRuntimeEngine(reference, threads=1, lean=True, weights=weights)
    try:
        golden = plan.model.golden(reference, engine, plan.clips)
    finally:
        engine.close()
    set_pools(golden, plan.model.encoders, plan.model.logits)
    clips = {clip.file: clip for clip in plan.clips}
    entry, trained = plan.weights.entry, plan.model.seed is None
    languages = entry.languages if entry and entry.languages is not None else plan.model.languages
    for place, recording in enumerate(golden.recordings):
        reason = not_judged(clips[recording.file], recording, languages, trained=trained, in_registry=entry is not None)
        golden.recordings[place] = recording.model_copy(update={"not_judged": reason})
    return golden


def _unfinished(plan: _Plan, variant: Variant, graphs: dict[str, Graph], folder: Path) -> Artifact:
    """Return the artifact as far as it is written, for the runtime to open."""
    nothing = SourceParity(implementation="", limit_relative_l2=0.0, outputs=(), results_equal={})
    entries = {
        path.name: FileEntry(size=path.stat().st_size, sha256="0" * 64) for path in folder.iterdir() if path.is_file()
    }
    content = _content(
        plan, variant, graphs, files=entries, golden=Golden(), parity=nothing, tolerances=unmeasured(variant)
    )
    return Artifact(folder, Manifest.create(content, ExportRecord(created="", host="", stages=())))


def _content(
    plan: _Plan,
    variant: Variant,
    graphs: dict[str, Graph],
    *,
    files: dict[str, FileEntry],
    golden: Golden,
    parity: SourceParity,
    tolerances: Tolerances,
) -> Content:
    return Content(
        model=plan.weights.model,
        family=plan.family,
        variant=variant,
        task=family_named(plan.family).task,
        source=plan.source,
        dims=plan.model.dims,
        frontend=plan.model.frontend,
        settings=plan.model.settings,
        graphs=graphs,
        cases=tuple(golden.cases),
        teacher_forced=tuple(golden.teacher_forced),
        recordings=tuple(golden.recordings),
        parity=parity,
        tolerances=tolerances,
        versions={name: version(name) for name in _PACKAGES},
        files=files,
    )


def _source(weights: Weights, model: FamilyModel) -> Source:
    return Source(
        weights="trained" if model.seed is None else "random",
        origin=weights.origin,
        repo=weights.repo,
        revision=weights.revision,
        seed=model.seed,
        licence=weights.licence,
        files={path.name: sha256_of(path) for path in model.source_files},
    )


def _taken(plan: _Plan) -> str:
    parameters = sum(prod(info.shape) for info in plan.model.tensors.values())
    return f"{plan.family}, {parameters / 1e6:,.1f} M parameters, from {plan.source.origin} ({plan.source.weights})"


def _file_entries(folder: Path) -> dict[str, FileEntry]:
    """Return size and hash of every file of an artifact."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileEntry(size=path.stat().st_size, sha256=sha256_of(path))
        for path in paths
    }


def _bytes_needed(plan: _Plan) -> int:
    """Return an upper estimate of the artifact's size while it is made."""
    elements = sum(prod(info.shape) for info in plan.model.tensors.values())
    element = DTYPES[plan.variant].itemsize
    copies = {"onnx": 0, "torchscript": 1, "pt2": 0}
    stored = elements * element * (1 + sum(copies[graph_format] for graph_format in plan.formats))
    if "pt2" in plan.formats:
        graphs = plan.model.graphs(DTYPES[plan.variant], None).values()
        stored += sum(parameter.numel() for graph in graphs for parameter in graph.module.parameters()) * element
    if plan.variant != "fp32" or "onnx" not in plan.formats:
        stored += elements * torch.float32.itemsize
    return int(stored + _SMALL_FILES + sum(clip.path.stat().st_size for clip in plan.clips))
