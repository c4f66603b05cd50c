"""`atlasport status`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from atlasport.commands.box import BoxOption

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.box.status import BoxStatus, ModelStatus


def status(
    root: BoxOption,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[
        str | None, typer.Option(help="Device to look at; default: what the active versions' profiles are made for.")
    ] = None,
    read_all: Annotated[
        bool, typer.Option("--read-all", help="Read and hash every file of the active versions.")
    ] = False,
) -> None:
    """Say what is active, its signature, its last self-test and the device's health; exit 0, 1, 3 or 4."""
    from rich.console import Console

    from runtime.box.status import box_status

    found = box_status(root, device, read_all=read_all)
    if json_output:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        _show(Console(highlight=False, soft_wrap=True), found)
    raise typer.Exit(found.code)


def _show(console: Console, found: BoxStatus) -> None:
    if not found.models:
        console.print("no model is installed")
    for model in found.models:
        _show_model(console, model)
    for finding in found.devices.get("findings", ()):
        console.print(f"{finding['about']}: {finding['found']}", markup=False)
    for problem in found.problems:
        console.print("problem ", style="bold red", end="")
        console.print(problem, markup=False)
    words = {0: "healthy", 1: "a self-test did not pass", 3: "device or machine not fit", 4: "damaged"}
    console.print(f"{found.root}: {words[found.code]}", style="bold green" if found.code == 0 else "bold red")


def _show_model(console: Console, model: ModelStatus) -> None:
    back = "".join(
        f", rollback goes to {v.version}" if v.trusted else f", no rollback to {v.version}: its key was replaced"
        for v in model.installed
        if v.use == "previous"
    )
    console.print(f"{model.model}: {model.active or 'no version'} is active{back}", style="bold")
    signature, tested, verified = model.signature, model.self_test, model.verification
    if signature is not None:
        replaced = "" if signature["trusted"] else ", a key that was replaced"
        signed = f"signed with {signature['key_id'][:16]}{replaced}" if signature["signed"] else "UNSIGNED"
        waived = f"; waived: {', '.join(model.waivers)}" if model.waivers else ""
        console.print(f"  {signed}{waived}", markup=False)
    if verified is not None:
        engines = ", ".join(verified["engines"])
        console.print(f"  verified before it was frozen: {verified['verdict']} on {verified['device']} ({engines})")
    if tested is not None:
        simulated = ", SIMULATED" if tested["simulated"] else ""
        where = f"{tested['device']}{simulated}, {tested['created']}"
        console.print(f"  self-test: {tested['verdict']} on {where}: {tested['reason']}", markup=False)
