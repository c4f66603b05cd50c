"""`atlasport check-om`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from atlasport.commands.options import ARTIFACTS, RootOption


def check_om(
    graphs: Annotated[list[str], typer.Argument(help="Artifacts' folders, models' names (all variants), ONNX files.")],
    soc: Annotated[str | None, typer.Option(help="For this chip: 310P3, 310B4, 910B4, 910B4-1, 910_9391.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    root: RootOption = ARTIFACTS,
) -> None:
    """Say what ATC will refuse of ONNX graphs: operators, opsets, control flow, dtypes, shapes, paths; exit 0 or 1.

    A `note` does not fail: it asks for a decision, or for a CANN and SoC that can do it.
    """
    from atlasport.commands.options import artifact_folders
    from export.om import check_onnx, onnx_files, soc_of
    from runtime.errors import ExitCode

    chip = None if soc is None else soc_of(soc)
    files: list[Path] = []
    for name in graphs:
        given = Path(name)
        for path in [given] if given.is_file() else artifact_folders([name], root):
            files += onnx_files(path)
    found = {str(file): check_onnx(file, chip) for file in files}
    refused = sum(finding.level == "refused" for findings in found.values() for finding in findings)
    if json_output:
        listed = {file: [asdict(finding) for finding in findings] for file, findings in found.items()}
        typer.echo(json.dumps({"refused": refused, "files": listed}, ensure_ascii=False))
    else:
        for file, findings in found.items():
            for finding in findings:
                typer.echo(f"{Path(file).parent}/{finding}")
        typer.echo(f"{len(files)} graphs, {refused} findings that ATC refuses")
    raise typer.Exit(ExitCode.GATE_FAILED if refused else ExitCode.OK)
