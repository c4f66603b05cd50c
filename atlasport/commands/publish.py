"""`atlasport publish`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlasport.commands.options import ARTIFACTS, Precision, PrecisionOption, RootOption


def publish(
    artifact: Annotated[str, typer.Argument(help="Artifact folder or name of an exported model.")],
    out: Annotated[Path, typer.Option(help="Folder of the repository: new, empty, or written by publish before.")],
    results: Annotated[
        list[Path] | None,
        typer.Option(help="Archive of `atlasport acceptance` of this very artifact; may be given again."),
    ] = None,
    chinese_first: Annotated[
        bool, typer.Option("--chinese-first", help="README.md is the Chinese one, README.en.md the English one.")
    ] = False,
    allow_simulated: Annotated[
        bool, typer.Option("--allow-simulated", help="Although a device was simulated; the title says so.")
    ] = False,
    allow_random: Annotated[
        bool, typer.Option("--allow-random", help="Although the weights are random; the title says so.")
    ] = False,
    wheel: Annotated[bool, typer.Option(help="Put atlasport's wheel into it.")] = True,
    precision: PrecisionOption = Precision.FP32,
    root: RootOption = ARTIFACTS,
) -> None:
    """Write the model repository that NPU communities publish, from an artifact and its results alone."""
    from atlasport.model_repository.folder import publish_repository
    from runtime.artifact import find_artifact
    from runtime.progress import steps

    with steps() as say:
        published = publish_repository(
            find_artifact(artifact, root, precision.value),
            out,
            archives=results or (),
            chinese_first=chinese_first,
            allow_simulated=allow_simulated,
            allow_random=allow_random,
            wheel=wheel,
            progress=say,
        )
    said = published.repository
    for run in said.runs:
        remark = " (SIMULATED)" if run.simulated else ""
        typer.echo(f"{run.accuracy.device}{remark}: {run.accuracy.verdict}, {run.accuracy.created}, {run.where}")
    if not said.on_npu:
        typer.echo("note: not run on an NPU; the README begins with that")
    if said.licence.identifier == "unknown":
        typer.echo("note: the licence of the weights is unknown; ask their owner before you publish them")
    recordings = len(said.content.recordings)
    typer.echo(f"note: {recordings} recordings go with it, in model/audio; make sure that you may publish them")
    size = f"{published.files} files, {published.size / 1e6:.1f} MB"
    typer.echo(f"published {published.path}: {size}; read its README.md before you push it")
