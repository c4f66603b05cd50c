"""`atlasport schema`."""

from __future__ import annotations

import json

import typer


def schema() -> None:
    """Print the JSON Schema of what `run --json` and `--format json` write."""
    from runtime.results import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
