"""`atlasport verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlasport.commands.options import ARTIFACTS, DeviceOption, EngineName, RootOption, ThreadsOption

if TYPE_CHECKING:
    from rich.console import Console

    from verify.run import VerifyResult


def verify(
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(help="Artifacts' folders or models' names (all variants); default: every artifact."),
    ] = None,
    device: DeviceOption = "cpu",
    engine: Annotated[EngineName | None, typer.Option(help="Default: all that the artifact has graphs for.")] = None,
    cases: Annotated[
        str | None, typer.Option(help="Names or patterns (step_*) of cases and recordings, comma-separated.")
    ] = None,
    runs: Annotated[int, typer.Option(min=0, help="Timed runs of each graph; 0 leaves the times out.")] = 20,
    threads: ThreadsOption = None,
    controls: Annotated[bool, typer.Option(help="Inject known bugs too: every one must be caught.")] = False,
    root: RootOption = ARTIFACTS,
) -> None:
    """Prove that an artifact's graphs agree with their golden outputs, time them, and write report.html."""
    from rich.console import Console

    from runtime.errors import AtlasportError
    from runtime.progress import steps
    from verify.run import verify_artifact

    console = Console(highlight=False, soft_wrap=True)
    codes, said = [], set()
    for folder in _folders(artifacts or [], root):
        try:
            with steps() as say:
                result = verify_artifact(
                    folder,
                    device=device,
                    engines=[engine.value] if engine else None,
                    cases=cases.split(",") if cases else None,
                    runs=runs,
                    threads=threads,
                    controls=controls,
                    progress=say,
                )
        except AtlasportError as error:
            # One damaged artifact must not hide the verdict on the others.
            if str(error) not in said:
                typer.echo(f"atlasport: {error}", err=True)
            said.add(str(error))
            codes.append(error.exit_code)
            continue
        _show(console, folder, result)
        codes.append(result.exit_code)
    raise typer.Exit(max(codes))


def _folders(names: list[str], root: Path) -> list[Path]:
    from runtime.artifact import artifacts_in, find_artifact
    from runtime.errors import InputError

    there = artifacts_in(root)
    if not names and not there:
        raise InputError(f"{root} holds no artifact; `atlasport export MODEL` writes one")
    folders = there if not names else []
    for name in names:
        variants = [folder for folder in there if folder.parent == root / name]
        folders += variants or [find_artifact(name, root)]
    return folders


def _show(console: Console, folder: Path, result: VerifyResult) -> None:
    colour = {"pass": "green", "fail": "red", "blocked": "yellow"}
    for judged in result.results.accuracy.engines:
        style = colour[judged.verdict]
        console.print(f"{folder} on {judged.engine}, {judged.device}: ", end="", markup=False)
        console.print(judged.verdict, style=f"bold {style}", end="")
        console.print(f", {judged.reason}", markup=False)
    for timed in result.results.performance.engines:
        if timed.end_to_end is None:
            continue
        run = timed.end_to_end
        graphs = ", ".join(
            f"{name} {1e3 * latency.latency_s.p50:.1f} ms"
            for name, latency in timed.graphs.items()
            if name in {"encoder", "step", "body"}
        )
        tokens = "" if run.tokens_per_s is None else f"{run.tokens_per_s:.0f} tokens/s, "
        console.print(f"  {timed.engine}: RTF {run.rtf:.3f}, {tokens}{graphs}", markup=False)
    console.print(f"verdict {folder}: ", end="", markup=False)
    console.print(result.verdict, style=f"bold {colour[result.verdict]}", end="")
    console.print(f"; report: {result.report}", markup=False)
