"""`atlasport acceptance`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlasport.commands.options import ARTIFACTS, RootOption, artifact_folders

if TYPE_CHECKING:
    from atlasport.acceptance import StepResult


def acceptance(
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(help="Artifacts' folders or models' names (all variants); default: every artifact."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda:N or npu:N; several with commas between them.")] = "npu:0",
    minutes: Annotated[float, typer.Option(min=0, help="Length of all soaks together.")] = 30,
    runs: Annotated[int, typer.Option(min=0, help="Timed runs of each graph in verify.")] = 20,
    step_minutes: Annotated[float, typer.Option(min=0.01, help="A step that takes longer is ended.")] = 60,
    out: Annotated[Path, typer.Option(help="Folder of the archive.")] = Path(),
    root: RootOption = ARTIFACTS,
) -> None:
    """Run doctor, verify and soak on a machine and pack all results into one archive to send back."""
    from rich.console import Console

    from atlasport.acceptance import accept

    console = Console(highlight=False, soft_wrap=True)
    colours = {"pass": "green", "fail": "red"}

    def show(step: StepResult) -> None:
        style = colours.get(step.outcome, "yellow")
        remarks = [*(["SIMULATED"] if step.simulated else []), *([] if step.counts else ["for comparison only"])]
        remark = f" ({', '.join(remarks)})" if remarks else ""
        console.print(f"{step.name}: ", end="", markup=False)
        console.print(step.outcome, style=f"bold {style}", end="")
        console.print(f", {step.wall_s:.0f} s{remark}{f'; {step.reason}' if step.reason else ''}", markup=False)

    folders = artifact_folders(artifacts or [], root)
    summary, archive = accept(
        device,
        folders,
        out,
        minutes=minutes,
        runs=runs,
        step_timeout_s=60 * step_minutes,
        progress=show,
    )
    passed = "pass" if summary.exit_code == 0 else "not passed"
    console.print(f"acceptance on {device}: {passed}; send back {archive}", markup=False)
    raise typer.Exit(summary.exit_code)
