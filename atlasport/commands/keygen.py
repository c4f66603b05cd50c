"""`atlasport keygen`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from atlasport.commands.options import KEY_VARIABLE


def keygen(
    folder: Annotated[Path, typer.Argument(help="Where key.pem and key.pub are written; never overwrites.")],
    passphrase: Annotated[
        bool,
        typer.Option("--passphrase", help=f"Ask for a passphrase for key.pem; or set {KEY_VARIABLE}."),
    ] = False,
) -> None:
    """Make a key pair: key.pem signs bundles and stays with you, key.pub goes to the boxes."""
    from runtime.bundle.signing import generate_key, key_id

    secret = os.environ.get(KEY_VARIABLE) or None
    if passphrase and secret is None:
        secret = typer.prompt("Passphrase of key.pem", hide_input=True, confirmation_prompt=True, err=True)
    private, public = generate_key(folder, secret)
    encrypted = "encrypted" if secret else "not encrypted: whoever reads it can sign"
    typer.echo(f"{private}: private, {encrypted}; keep it off the boxes")
    typer.echo(f"{public}: public, id {key_id(public)}; next: atlasport freeze MODEL --key {private}")
