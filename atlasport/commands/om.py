"""`atlasport om`."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from atlasport.commands.options import ARTIFACTS, Precision, PrecisionOption, RootOption


def om(
    artifact: Annotated[str, typer.Argument(help="An artifact's folder, or a model's name.")],
    soc: Annotated[
        str, typer.Argument(metavar="SOC", help="The Name that npu-smi prints: 310P3, 310B4, 910B4-1, 910_9391.")
    ],
    out: Annotated[Path | None, typer.Option(help="A new folder; default: om/SOC in the artifact's folder.")] = None,
    precision: PrecisionOption = Precision.FP32,
    root: RootOption = ARTIFACTS,
) -> None:
    """Convert an artifact's ONNX graphs to OM files by ATC of CANN, which needs no NPU; exit 3 where it is not."""
    from export.om import check_onnx, om_files, onnx_files, soc_of
    from runtime.artifact import find_artifact, open_artifact
    from runtime.errors import ExitCode

    chip = soc_of(soc)
    folder = find_artifact(artifact, root, precision.value)
    files = om_files(open_artifact(folder))
    refused = [
        finding for path in onnx_files(folder) for finding in check_onnx(path, chip) if finding.level == "refused"
    ]
    for finding in refused:
        typer.echo(str(finding), err=True)
    if refused:
        raise typer.Exit(ExitCode.GATE_FAILED)
    with tempfile.TemporaryDirectory() as temporary:
        script = Path(temporary) / "convert.sh"
        script.write_bytes(files["om/convert.sh"])
        target = out or folder / "om" / soc
        command = ["bash", str(script), soc, str(target.resolve())]
        converted = subprocess.run(  # noqa: S603 - our own script, no shell
            command, env={**os.environ, "ARTIFACT": str(folder.resolve())}, check=False
        )
    raise typer.Exit(converted.returncode)
