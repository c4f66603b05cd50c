"""`atlasport push` and `atlasport pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ReferenceArgument = Annotated[str, typer.Argument(metavar="REFERENCE", help="REGISTRY[:PORT]/REPOSITORY:TAG.")]
InsecureOption = Annotated[bool, typer.Option("--insecure", help="Speak plain http with another machine.")]


def push(
    bundle: Annotated[Path, typer.Argument(help="An .atlas file.")],
    reference: ReferenceArgument,
    insecure: InsecureOption = False,
) -> None:
    """Send a bundle to an OCI registry, as a ModelPack artifact; what it has already is not sent again."""
    from runtime.bundle.registry import Reference, push

    pushed = push(bundle, Reference.parse(reference), insecure=insecure)
    typer.echo(f"{reference.split('@')[0]}@{pushed.digest}")
    typer.echo(f"  {pushed.sent / 1e6:.1f} MB sent, {pushed.present / 1e6:.1f} MB were there", err=True)


def pull(
    reference: ReferenceArgument,
    out: Annotated[Path | None, typer.Option(help="The file; default: named by model and version.")] = None,
    insecure: InsecureOption = False,
) -> None:
    """Get a bundle from an OCI registry: the file that was pushed, byte for byte. `install` checks its signature."""
    from runtime.bundle.registry import Reference, pull

    typer.echo(str(pull(Reference.parse(reference), out, insecure=insecure)))
