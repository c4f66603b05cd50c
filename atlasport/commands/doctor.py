"""`atlasport doctor`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from atlasport.commands.options import ARTIFACTS, RootOption, artifact_folders
from atlasport.commands.tables import print_table

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.doctor import Diagnosis


def doctor(
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(help="Artifacts' folders or models' names (all variants); default: every artifact."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda:N or npu:N; several with commas between them.")] = "cpu",
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    root: RootOption = ARTIFACTS,
) -> None:
    """Say what is here, what each artifact needs of the device, and what to do about the difference; exit 0 or 3."""
    from runtime.artifact import artifacts_in
    from runtime.doctor import diagnose
    from runtime.errors import ExitCode

    names = artifacts or []
    # A machine is worth a look before the first artifact lies on it.
    folders = artifact_folders(names, root) if names or artifacts_in(root) else []
    diagnosis = diagnose(device.split(","), folders)
    if json_output:
        typer.echo(json.dumps(diagnosis.to_json(), ensure_ascii=False))
        for finding in diagnosis.findings:
            if finding.level == "problem":
                typer.echo(str(finding), err=True)
    else:
        _show(diagnosis)
    raise typer.Exit(ExitCode.OK if diagnosis.fit else ExitCode.ENVIRONMENT)


def _show(diagnosis: Diagnosis) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if diagnosis.simulated:
        console.print("SIMULATED: a stand-in for the device is loaded", style="bold yellow")
    _show_facts(console, diagnosis)
    _show_artifacts(console, diagnosis)
    styles = {"ok": "green", "note": "yellow", "problem": "bold red"}
    for finding in sorted(diagnosis.findings, key=lambda finding: list(styles).index(finding.level)):
        console.print(f"{finding.level:<8}", style=styles[finding.level], end="")
        console.print(str(finding), markup=False)
    names = ", ".join(diagnosis.devices)
    problems = sum(finding.level == "problem" for finding in diagnosis.findings)
    console.print(f"{names}: ", end="", markup=False)
    if diagnosis.fit:
        console.print("fit", style="bold green")
    else:
        console.print(f"not fit, {problems} problem{'s' if problems > 1 else ''}", style="bold red")


def _show_facts(console: Console, diagnosis: Diagnosis) -> None:
    from rich.table import Table

    from runtime.findings import binary_size

    facts = diagnosis.ascend
    if not (facts.driver or facts.cann or facts.npu_smi.chips or "torch_npu" in facts.packages):
        console.print("Ascend: no driver, no npu-smi, no CANN, no torch_npu")
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("driver", facts.driver or "none")
    table.add_row("npu-smi", facts.npu_smi.version or "none")
    for index, chip in enumerate(facts.npu_smi.chips):
        memory = f", {binary_size(chip.memory_total)}" if chip.memory_total else ""
        table.add_row(f"chip {index}", f"card {chip.npu} chip {chip.chip}: {chip.soc}, {chip.health}{memory}")
    table.add_row("CANN", f"{facts.cann} in {facts.cann_path}" if facts.cann else "none")
    for package in ("torch", "torch_npu"):
        table.add_row(package, facts.packages.get(package, "none"))
    for name, value in facts.variables.items():
        table.add_row(name, value)
    console.print(table)


def _show_artifacts(console: Console, diagnosis: Diagnosis) -> None:
    from runtime.findings import binary_size

    rows = []
    for need in diagnosis.artifacts:
        free = [name for name, count in need.shapes.items() if not count]
        shapes = f"{sum(need.shapes.values())} fixed" + (f"; free: {', '.join(free)}" if free else "")
        sizes = binary_size(need.weights_bytes), binary_size(need.state_bytes)
        rows.append((f"{need.model}/{need.variant}", ", ".join(need.engines) or "none", *sizes, shapes))
    if rows:
        headers = ("artifact", "engines", "weights", "state", "shapes")
        print_table(console, headers, rows, ("engines", "shapes"), ("shapes", "state", "engines", "weights"))
    else:
        console.print("no artifact; `atlasport export MODEL` writes one")
