"""`atlasport export`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from atlasport.commands.options import ARTIFACTS, Precision, PrecisionOption

if TYPE_CHECKING:
    from runtime.manifest import Manifest, Recording

_FORMATS = "onnx,torchscript"


def export(
    model: Annotated[str, typer.Argument(help="A name from `atlasport models`, or any new name with --weights.")],
    weights: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder, hub id, or `random`; default: the model's own repository on the hub."),
    ] = None,
    precision: PrecisionOption = Precision.FP32,
    formats: Annotated[str, typer.Option(help="Comma-separated: onnx, torchscript, pt2.")] = _FORMATS,
    out: Annotated[Path, typer.Option(help="Folder of the artifacts.")] = ARTIFACTS,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub id of the tokenizer, where the checkpoint has none.")
    ] = None,
    recordings: Annotated[
        list[Path] | None,
        typer.Option(
            help="Recordings of your own, or a folder of them, for the golden run; their transcripts beside them "
            "(name.txt or name.json). May be given several times."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Folder or hub id of an adapter's base; default: what the adapter names.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="onnx-asr or sherpa-onnx: write what that package loads (Parakeet, fp32), not an artifact."),
    ] = None,
) -> None:
    """Turn a checkpoint into frozen graphs with golden outputs, proved against the source implementation."""
    if layout is not None:
        if precision is not Precision.FP32 or formats != _FORMATS:
            from runtime.errors import InputError

            raise InputError(
                f"--layout {layout}: expected neither --precision nor --formats, found some; leave them out"
            )
        _export_layout(model, layout, weights, out)
        return
    from export.pipeline import export_model, parse_formats
    from runtime.artifact import open_artifact
    from runtime.progress import steps

    with steps() as say:
        folder = export_model(
            model,
            weights=weights,
            variant=precision.value,
            formats=parse_formats(formats),
            out=out,
            recordings=recordings,
            tokenizer=tokenizer,
            base=base,
            progress=say,
        )
    _print_summary(folder, open_artifact(folder).manifest)


def _export_layout(model: str, layout: str, weights: str | None, out: Path) -> None:
    from rich.console import Console

    from export.layouts import export_layout
    from runtime.progress import steps

    with steps() as say:
        folder = export_layout(model, layout, weights=weights, out=out, progress=say)
    size = sum(path.stat().st_size for path in folder.iterdir())
    Console(highlight=False).print(f"exported {folder} ({size / 1e6:.0f} MB) for {layout}", soft_wrap=True)


def _print_summary(folder: Path, manifest: Manifest) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    content = manifest.content
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for name in ("CPU s", "wall s", "peak RSS MB"):
        table.add_column(name, justify="right")
    for stage in manifest.export.stages:
        table.add_row(stage.stage, *_cost(stage.cpu_s, stage.wall_s, stage.peak_rss))
    stages = manifest.export.stages
    cpu_s, wall_s = sum(stage.cpu_s for stage in stages), sum(stage.wall_s for stage in stages)
    table.add_row("whole", *_cost(cpu_s, wall_s, max(stage.peak_rss for stage in stages)))
    console.print(table)
    worst = max(content.parity.outputs, key=lambda parity: parity.relative_l2)
    console.print(
        f"{len(content.cases)} golden cases; {len(content.parity.outputs)} outputs compared with "
        f"{content.parity.implementation}: worst relative L2 {worst.relative_l2:.1e} ({worst.case}/{worst.output}), "
        f"limit {content.parity.limit_relative_l2:.0e}"
    )
    for line in manifest.export.taken:
        console.print(f"taken: {line}", markup=False)
    for line in manifest.export.notes:
        console.print(f"note: {line}", markup=False)
    for recording in content.recordings:
        console.print(f"recording {recording.name}: {_heard(recording)}", markup=False)
    if content.source.weights == "random":
        console.print("weights are random: good for timing and parity, not for text")
    size = sum(entry.size for entry in content.files.values()) / 1e6
    following = f"atlasport verify {quote(str(folder))}"
    console.print(f"exported {folder} ({size:.0f} MB); next: {following}", soft_wrap=True, markup=False)


def _heard(recording: Recording) -> str:
    """Return how close a golden text is to what is spoken, in words."""
    from runtime.spoken import error_rate

    rate = error_rate(recording.reference, recording.result["text"]) if "text" in recording.result else None
    if recording.not_judged or rate is None:
        return f"not judged, {recording.not_judged or 'nothing is known to be said in it'}"
    return f"{rate.kind} {rate.value:.1%} against what is spoken"


def _cost(cpu_s: float, wall_s: float, peak_rss: int) -> tuple[str, str, str]:
    return f"{cpu_s:.1f}", f"{wall_s:.1f}", f"{peak_rss / 1e6:.0f}"
